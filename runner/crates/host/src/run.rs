//! One run of a plugin: a new store and instance, one call, and a report in every case. Traps,
//! limits and refusals are outcomes, not errors.

use std::time::{Duration, Instant};

use wasmtime::component::{Instance, ResourceTableError};
use wasmtime::{Store, Trap, WasmBacktrace};
use wasmtime_wasi::I32Exit;
use wasmtime_wasi_http::FieldMapError;

use super::bindings::exports::hookrun::builder_selection::builder_selection;
use super::bindings::exports::hookrun::diff::diff;
use super::bindings::exports::hookrun::post_build::post_build;
use super::convert::{self, IntoOutcome};
use super::host_call::RunState;
use super::limits::LimitReached;
use super::linked::LinkedPlugin;
use super::output::GuestOutput;
use super::run_clock::RunClock;
use super::stopped;
use hookrun_capability::EventScope;
use hookrun_capability::{RunLog, Services};
use hookrun_config::Limit;
use hookrun_nix::event::{Event, HookEvent, HookKind, NixDirs};
use hookrun_nix::outcome::{Outcome, RunReport, Usage};
use hookrun_nix::selection::{Candidate, Decision, LocalMachine, Machine, PolicyError};

/// Number of ticks after which a guest yields to the executor.
const YIELD_TICKS: u64 = 1;

/// Allowance for the records that hold the lists and strings of a call.
const LIFT_MARGIN: u64 = 64 << 10;

/// The cost of a detail of a result in addition to its text, so that empty details are not free.
const DETAIL_COST: usize = 16;

/// The message of wasmtime when a guest passes more than `Store::set_hostcall_fuel` allows. The
/// error's type is private (`HostcallFuelExhausted` in
/// crates/wasmtime/src/runtime/component/func/options.rs of wasmtime 48.0); a test checks the text.
const FUEL_EXHAUSTED: &str = "too much data is being copied between the host and the guest";

/// The message of wasmtime when a component has too many instances, memories or tables
/// (`bump_resource_counts`, crates/wasmtime/src/runtime/store.rs in 48.0).
const COUNT_EXCEEDED: &str = "resource limit exceeded";

/// The message of wasmtime when a guest holds, or lends in one call, more handles than
/// `Store::set_max_component_handles` allows.
const HANDLES_EXCEEDED: &str = "store handle limit exceeded";

/// The call of one hook, with its arguments.
trait HookCall: Send {
    /// The type that the hook returns.
    type Answer: IntoOutcome + Clone + Send;

    fn call(
        self,
        store: &mut Store<RunState>,
        instance: &Instance,
    ) -> impl Future<Output = wasmtime::Result<Self::Answer>> + Send;
}

struct BuildCall {
    export: post_build::GuestIndices,
    event: post_build::Event,
}

impl HookCall for BuildCall {
    type Answer = Result<post_build::Outcome, post_build::Failure>;

    async fn call(
        self,
        store: &mut Store<RunState>,
        instance: &Instance,
    ) -> wasmtime::Result<Self::Answer> {
        self.export.load(&mut *store, instance)?.call_handle(store, &self.event).await
    }
}

struct DiffCall {
    export: diff::GuestIndices,
    event: diff::Event,
}

impl HookCall for DiffCall {
    type Answer = Result<diff::Outcome, diff::Failure>;

    async fn call(
        self,
        store: &mut Store<RunState>,
        instance: &Instance,
    ) -> wasmtime::Result<Self::Answer> {
        self.export.load(&mut *store, instance)?.call_handle(store, &self.event).await
    }
}

struct SelectCall {
    export: builder_selection::GuestIndices,
    candidate: builder_selection::Candidate,
    machines: Vec<builder_selection::Machine>,
    local: builder_selection::LocalMachine,
}

impl HookCall for SelectCall {
    type Answer = Result<builder_selection::Decision, String>;

    async fn call(
        self,
        store: &mut Store<RunState>,
        instance: &Instance,
    ) -> wasmtime::Result<Self::Answer> {
        let guest = self.export.load(&mut *store, instance)?;
        guest.call_select(store, &self.candidate, &self.machines, &self.local).await
    }
}

impl LinkedPlugin {
    /// Runs the hook of `event`. The first `attempt` is 1.
    pub async fn run_event(&self, services: &Services, event: &Event, attempt: u32) -> RunReport {
        let scope = EventScope::of(event);
        let limit = Limit::WallTime;
        match &event.hook {
            HookEvent::PostBuild(build) => match self.exports.post_build.clone() {
                Some(export) => {
                    let call =
                        BuildCall { export, event: convert::post_build(event, build, attempt) };
                    self.run(services, scope, limit, call).await.1
                }
                None => self.has_no(HookKind::PostBuild),
            },
            HookEvent::Diff(diff) => match self.exports.diff.clone() {
                Some(export) => {
                    let call = DiffCall { export, event: convert::diff(event, diff, attempt) };
                    self.run(services, scope, limit, call).await.1
                }
                None => self.has_no(HookKind::Diff),
            },
        }
    }

    /// Asks the policy where to build `candidate`.
    ///
    /// # Errors
    /// Returns an error in the first part if the policy gave no usable answer. The report describes
    /// the run in either case.
    pub async fn select(
        &self,
        services: &Services,
        candidate: &Candidate,
        machines: &[Machine],
        local: &LocalMachine,
    ) -> (Result<Decision, PolicyError>, RunReport) {
        let Some(export) = self.exports.builder_selection.clone() else {
            let report = self.has_no(HookKind::BuilderSelection);
            return (Err(PolicyError::Unavailable(report.outcome.message().to_owned())), report);
        };
        let scope =
            EventScope { nix: NixDirs::from_env(), paths: Vec::new(), event: String::new() };
        let call = SelectCall {
            export,
            candidate: convert::candidate(candidate),
            machines: machines.iter().map(convert::machine).collect(),
            local: convert::local(local),
        };
        let (answer, report) = self.run(services, scope, Limit::SelectionTime, call).await;
        let decision = match answer {
            Some(Ok(decision)) => convert::decision(decision),
            Some(Err(message)) => Err(PolicyError::Failed(message)),
            None => Err(PolicyError::Failed(report.outcome.message().to_owned())),
        };
        (decision, report)
    }

    fn has_no(&self, hook: HookKind) -> RunReport {
        RunReport::refused(format!(
            "plugin `{0}` does not serve the hook `{hook}`; add it to `hooks` under [plugins.{0}], or name another plugin",
            self.name()
        ))
    }

    /// Runs a hook once. Returns an answer if the guest gave one within its limits.
    async fn run<C: HookCall>(
        &self,
        services: &Services,
        scope: EventScope,
        time: Limit,
        call: C,
    ) -> (Option<C::Answer>, RunReport) {
        let limits = &self.context.plugin.limits;
        let begun = Instant::now();
        let log = RunLog::new(limits.get(Limit::LogBytes));
        let (stdout, stderr) = (GuestOutput::stdout(&log), GuestOutput::stderr(&log));
        // Nix is blocked by a selection and by a gate.
        let gate = self.context.plugin.gate;
        let apart = time == Limit::WallTime && (!gate || limits.is_set(Limit::StreamTime));
        let clock = RunClock::start(limits, time, apart);
        let mut store = self.store(services, scope, &clock, &log, (&stdout, &stderr));
        let mut start = Duration::ZERO;
        let run = async {
            let instance = self.instance.instantiate_async(&mut store).await?;
            start = begun.elapsed();
            call.call(&mut store, &instance).await
        };
        let ended = tokio::select! {
            // The run is polled first: if both are ready, a host call has reached its deadline and
            // reports its name.
            biased;
            result = run => Ok(result),
            limit = clock.expired() => Err(limit),
        };
        stdout.finish();
        stderr.finish();
        let (answer, outcome) = match ended {
            Ok(Ok(answer)) => self.returned(&mut store, answer).await,
            Ok(Err(error)) => (None, self.stopped(store.data(), &stderr.last_lines(), &error)),
            Err(limit) => (None, self.limit_outcome(LimitReached::by_guest(limit, None))),
        };
        let outcome = match store.data().refused() {
            Some(reason) => refused_instead(outcome, reason),
            None => outcome,
        };
        let progress = store.data().made_progress();
        let usage =
            Usage { wall: begun.elapsed(), start: self.load_time + start, ..store.data().usage() };
        let outcome = stopped::with_hint(outcome, &usage);
        let fix = Limit::LogBytes.reached(self.name(), limits.get(Limit::LogBytes), None);
        let report =
            RunReport { usage, log: log.finish(&fix), progress, ..RunReport::from(outcome) };
        tracing::debug!(plugin = self.name(), class = %report.outcome.class(), wall = ?report.usage.wall, "run ended");
        (answer, report)
    }

    fn store(
        &self,
        services: &Services,
        scope: EventScope,
        clock: &RunClock,
        log: &RunLog,
        output: (&GuestOutput, &GuestOutput),
    ) -> Store<RunState> {
        let plugin = &self.context.plugin;
        let state = RunState::new(
            self.context.clone(),
            services.clone(),
            scope,
            clock.clone(),
            log.clone(),
            output,
        );
        let mut store = Store::new(self.instance.engine(), state);
        store.limiter(|state| state.allocations());
        store.set_epoch_deadline(YIELD_TICKS);
        store.epoch_deadline_async_yield_and_update(YIELD_TICKS);
        let largest =
            plugin.limits.get(Limit::CallBytes).max(plugin.limits.get(Limit::OutputBytes));
        store.set_hostcall_fuel(
            usize::try_from(largest.saturating_add(LIFT_MARGIN)).unwrap_or(usize::MAX),
        );
        store.set_max_component_handles(RunState::max_component_handles(plugin));
        store
    }

    /// Handles a guest that returned: its output is measured, and its state is committed.
    async fn returned<R: IntoOutcome + Clone>(
        &self,
        store: &mut Store<RunState>,
        answer: R,
    ) -> (Option<R>, Outcome) {
        let outcome = answer.clone().outcome();
        let details: usize = match &outcome {
            Outcome::Done { details, .. } => {
                details.iter().map(|(key, value)| DETAIL_COST + key.len() + value.len()).sum()
            }
            _ => 0,
        };
        let size = (outcome.message().len() + details) as u64;
        if size > self.context.plugin.limits.get(Limit::OutputBytes) {
            return (
                None,
                self.limit_outcome(LimitReached::by_guest(Limit::OutputBytes, Some(size))),
            );
        }
        match store.data_mut().commit().await {
            Ok(()) => (Some(answer), outcome),
            Err(error) => (
                None,
                Outcome::Failed { message: error.message, transient: true, retry_after_ms: None },
            ),
        }
    }

    /// Returns the limit or trap that stopped the guest.
    fn stopped(&self, state: &RunState, stderr: &[String], error: &wasmtime::Error) -> Outcome {
        if let Some(reached) = error.downcast_ref::<LimitReached>().copied().or(state.reached()) {
            return self.limit_outcome(reached);
        }
        if error.downcast_ref::<Trap>() == Some(&Trap::StackOverflow) {
            return self.limit_outcome(LimitReached::by_guest(Limit::Stack, None));
        }
        if matches!(error.downcast_ref(), Some(ResourceTableError::Full)) {
            return self.limit_outcome(LimitReached::by_guest(Limit::Handles, None));
        }
        if let Some(FieldMapError::TotalSizeTooBig | FieldMapError::TooManyFields) =
            error.downcast_ref::<FieldMapError>()
        {
            return self.limit_outcome(LimitReached::by_guest(Limit::HttpHeaderBytes, None));
        }
        let cause = error.root_cause().to_string().replace('\n', " ");
        let backtrace = error.downcast_ref::<WasmBacktrace>();
        if cause.contains(FUEL_EXHAUSTED) {
            // A call into the host has guest frames below it; a return from a hook has none.
            let limit = if backtrace.is_some() { Limit::CallBytes } else { Limit::OutputBytes };
            return self.limit_outcome(LimitReached::by_guest(limit, None));
        }
        if cause.contains(HANDLES_EXCEEDED) {
            return self.limit_outcome(LimitReached::by_guest(Limit::Handles, None));
        }
        if cause.contains(COUNT_EXCEEDED) {
            return self.limit_outcome(LimitReached::by_guest(Limit::Instances, None));
        }
        let what = match error.downcast_ref::<I32Exit>() {
            Some(I32Exit(code)) => format!("called exit({code}) instead of returning"),
            None => format!("trapped: {cause}"),
        };
        let frames = backtrace.map(WasmBacktrace::frames).unwrap_or_default();
        let frames: Vec<_> = frames.iter().map(wasmtime::FrameInfo::func_name).collect();
        let what = stopped::describe(&what, stderr, &frames);
        Outcome::Trapped { message: format!("plugin `{}` {what}", self.name()) }
    }

    fn limit_outcome(&self, reached: LimitReached) -> Outcome {
        let message = reached.message(self.name(), &self.context.plugin.limits);
        Outcome::LimitReached { limit: reached.limit.key().to_owned(), message }
    }
}

/// Returns the outcome of a run in which a host call was refused, for `reason`, until the operator
/// fixes something. However the guest handled the refusal, a failure is not caused by the event, so
/// the task is kept. A limit is still reported as a limit, because the guest went on after the
/// refusal.
fn refused_instead(outcome: Outcome, reason: &str) -> Outcome {
    match outcome {
        Outcome::Failed { message, .. } if message.contains(reason) => Outcome::Refused { message },
        Outcome::Failed { message, .. } if message.is_empty() => {
            Outcome::Refused { message: reason.to_owned() }
        }
        Outcome::Failed { message, .. } | Outcome::Trapped { message } => {
            Outcome::Refused { message: format!("{reason}; then: {message}") }
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_after_a_refused_host_call_has_the_outcome_refused() {
        let reason = "the store refuses the credentials (403); renew them";
        let failed = |message: &str, transient| Outcome::Failed {
            message: message.to_owned(),
            transient,
            retry_after_ms: None,
        };
        let refused = |outcome| refused_instead(outcome, reason);
        let as_told = format!("cannot upload a: {reason}");
        assert_eq!(refused(failed(&as_told, false)), Outcome::Refused { message: as_told });
        assert_eq!(refused(failed("", true)), Outcome::Refused { message: reason.to_owned() });
        assert_eq!(
            refused(failed("no upload", false)),
            Outcome::Refused { message: format!("{reason}; then: no upload") }
        );
        let trapped = Outcome::Trapped { message: "unreachable".to_owned() };
        assert_eq!(refused(trapped).class().as_str(), "refused");
        let done = Outcome::Done { message: "stored elsewhere".to_owned(), details: Vec::new() };
        assert_eq!(refused(done.clone()), done);
        let limit = Outcome::LimitReached { limit: "mails".to_owned(), message: String::new() };
        assert_eq!(refused(limit.clone()), limit);
    }
}
