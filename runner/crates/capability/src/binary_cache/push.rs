//! Runs one push: starts the work that the graph allows, several steps at a time, and tells the
//! graph what has ended.
//!
//! A failure of one path stops that path and its referrers. A failure of the service ends the push:
//! nothing more begins, and what is under way comes to its end.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::task::JoinSet;

use super::condemned::{self, Condemned};
use super::graph::{Found, Graph, Lane, ToPush};
use super::publication::{self, Existing, Published};
use super::report::{Progress, Report};
use super::{BinaryCaches, Form, Push, cache_info, presence, transfer};
use crate::nix_store::{Backend, blocking};
use crate::object_store::{Creation, ObjectAttributes, StoredNar};
use crate::{CapabilityError, ErrorKind, Services};
use hookrun_nix::database::PathInfo;
use hookrun_nix::event::NixDirs;
use hookrun_nix::nar::Compression;

/// Paths of one push that are looked up at the same time.
const LOOK_UPS: usize = 128;
/// Narinfos of one push that are written at the same time.
const PUBLICATIONS: usize = 128;
/// Small NARs of one push that are under way at the same time.
const SMALL_NARS: usize = 128;
/// Large NARs of one push that are under way, or wait for their turn.
const LARGE_NARS: usize = 4;
/// How long a cache counts as prepared.
const PREPARED: Duration = Duration::from_mins(5);
/// The age at which the list of what is about to be removed is read again: a bit less than what
/// garbage collection relies on.
const REREAD: Duration = Duration::from_secs(condemned::REREAD.as_secs() / 2);

/// The longest time after which an upload of an object that is being removed is tried again. Most
/// removals end long before the time that they have announced.
const SWEPT: Duration = Duration::from_mins(1);

/// What is known of a cache.
#[derive(Debug)]
pub(super) struct Prepared {
    /// When its `nix-cache-info` was checked.
    checked: Instant,
    /// When the list of what is about to be removed was read.
    read: Instant,
    condemned: Arc<Condemned>,
}

/// Why a step failed.
#[derive(Debug)]
pub(super) enum Trouble {
    /// Something is wrong with one path.
    Path(CapabilityError),
    /// Something is wrong with the service, so all paths would fail.
    Service(CapabilityError),
}

impl From<CapabilityError> for Trouble {
    fn from(error: CapabilityError) -> Self {
        match error.kind {
            ErrorKind::Transient | ErrorKind::Refused => Self::Service(error),
            _ => Self::Path(error),
        }
    }
}

impl Trouble {
    /// The object `key` may be removed before `until`.
    pub(super) fn swept(key: &str, until: u64) -> Self {
        let wait = Duration::from_secs(until.saturating_sub(now()).max(1)).min(SWEPT);
        let error = CapabilityError::transient(format!(
            "`{key}` is being removed by `hookrun cache gc`; it is uploaded again after that"
        ));
        Self::Path(error.retry_after(wait))
    }
}

/// Returns the time in seconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// What the steps of one push have in common.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) services: Services,
    pub(super) nix: Arc<dyn Backend>,
    pub(super) store_dir: String,
    pub(super) push: Push,
    /// Where the cache is.
    place: String,
    /// The valid paths of the push.
    pub(super) infos: Vec<PathInfo>,
    /// The form of each of them, as a number of a group.
    forms: Vec<usize>,
    /// What is about to be removed from the cache, as it was when the push began.
    pub(super) condemned: Arc<Condemned>,
    /// The names of the keys, which are a part of what is recorded as present.
    keys: String,
}

impl Context {
    pub(super) fn caches(&self) -> &BinaryCaches {
        self.services.binary_caches()
    }

    pub(super) fn place(&self) -> &str {
        &self.place
    }

    pub(super) fn form(&self, number: usize) -> Option<&Form> {
        self.push.groups.get(*self.forms.get(number)?).map(|group| &group.form)
    }

    /// Returns the name of an object of this cache, for locks and records.
    pub(super) fn name<'a>(&'a self, parts: impl IntoIterator<Item = &'a str>) -> presence::Name {
        presence::name(&self.place, parts)
    }

    /// Returns the name under which a path is recorded as present with the signatures of the keys.
    pub(super) fn present_name(&self, path: &str) -> presence::Name {
        presence::name(&self.place, ["path", path, &self.keys])
    }

    /// Returns whether a path counts as absent because it is about to be removed.
    pub(super) fn is_condemned(&self, path: &str) -> bool {
        self.condemned.narinfo_since(hookrun_nix::narinfo::hash_part(path)).is_some()
    }

    /// Returns whether the path is known to be present.
    fn is_known(&self, path: &str) -> bool {
        self.push.settings.trust_presence
            && !self.is_condemned(path)
            && self.caches().presence.has(&self.place, &self.present_name(path))
    }

    /// Returns what is about to be removed from the cache, read a short while ago.
    ///
    /// # Errors
    /// The list cannot be read.
    pub(super) async fn condemned(&self) -> Result<Arc<Condemned>, CapabilityError> {
        let flight =
            self.caches().prepared.of(presence::name(&self.place, ["prepared", &self.store_dir]));
        let mut flight = flight.lock().await;
        if let Some(known) = flight.as_ref().filter(|known| known.read.elapsed() < REREAD) {
            return Ok(Arc::clone(&known.condemned));
        }
        let condemned = read_condemned(&self.services, &self.push.store).await?;
        if let Some(known) = flight.as_mut() {
            known.read = Instant::now();
            known.condemned = Arc::clone(&condemned);
        }
        Ok(condemned)
    }
}

/// Reads the list of what is about to be removed.
async fn read_condemned(
    services: &Services,
    store: &str,
) -> Result<Arc<Condemned>, CapabilityError> {
    let stores = services.object_stores();
    let Some(text) = stores.get(store, condemned::KEY, condemned::MAX_SIZE).await? else {
        return Ok(Arc::default());
    };
    Condemned::parse(&text)
        .map(Arc::new)
        .map_err(|error| CapabilityError::permanent(format!("object store `{store}`: {error}")))
}

/// A step that has ended.
enum Done {
    LookedUp(usize, Result<(Found, Existing), Trouble>),
    Sent(usize, Result<StoredNar, Trouble>),
    Published(usize, Result<Published, Trouble>),
}

impl BinaryCaches {
    /// Uploads paths of the store that `nix` reads, the store of the Nix with the directories
    /// `dirs`. Paths that could not be uploaded are in the report.
    ///
    /// # Errors
    /// Nothing was uploaded: the cache cannot be used, or a path has no signature.
    pub async fn push(
        &self,
        services: &Services,
        nix: Arc<dyn Backend>,
        dirs: &NixDirs,
        push: Push,
        progress: &(dyn Fn(&Progress<'_>) + Send + Sync),
    ) -> Result<Report, CapabilityError> {
        let mut report = Report::default();
        let store_dir = dirs.store.to_string_lossy().into_owned();
        let place = services.object_stores().place(&push.store)?;
        let asked: Vec<(String, usize)> = push
            .groups
            .iter()
            .enumerate()
            .flat_map(|(number, group)| group.paths.iter().map(move |path| (path.clone(), number)))
            .collect();
        let (read, presence) = (Arc::clone(&nix), services.clone());
        let Valid { infos, forms, gone } = blocking(move || {
            presence.binary_caches().presence.refresh();
            valid(&*read, asked)
        })
        .await?;
        report.paths = (infos.len() + gone.len()) as u64;
        for path in gone {
            let error = CapabilityError::permanent(
                "it is not valid in the Nix store any longer; it was garbage-collected",
            );
            progress(&Progress::Failed { path: &path, error: &error });
            report.fail(&path, error, false);
        }
        check_signatures(&push, &infos)?;
        if infos.is_empty() {
            return Ok(report);
        }
        let condemned = self.prepare(services, &push, &place, &store_dir).await?;
        let mut keys = push.settings.keys.clone();
        keys.sort_unstable();
        let context = Arc::new(Context {
            services: services.clone(),
            nix,
            store_dir,
            push,
            place,
            infos,
            forms,
            condemned,
            keys: keys.join(" "),
        });
        Run::new(&context, report, progress).run().await
    }

    /// Checks the `nix-cache-info` of a cache, and writes that of a new one. Reads the list of what
    /// is about to be removed. Done once in a while.
    async fn prepare(
        &self,
        services: &Services,
        push: &Push,
        place: &str,
        store_dir: &str,
    ) -> Result<Arc<Condemned>, CapabilityError> {
        let flight = self.prepared.of(presence::name(place, ["prepared", store_dir]));
        let mut flight = flight.lock().await;
        let is_fresh =
            |known: &&Prepared| known.checked.elapsed() < PREPARED && known.read.elapsed() < REREAD;
        if let Some(known) = flight.as_ref().filter(is_fresh) {
            return Ok(Arc::clone(&known.condemned));
        }
        let read = Instant::now();
        let (checked, condemned) = tokio::join!(
            self.check_cache_info(services, push, place, store_dir),
            read_condemned(services, &push.store)
        );
        checked?;
        let condemned = condemned?;
        *flight = Some(Prepared { checked: read, read, condemned: Arc::clone(&condemned) });
        Ok(condemned)
    }

    async fn check_cache_info(
        &self,
        services: &Services,
        push: &Push,
        place: &str,
        store_dir: &str,
    ) -> Result<(), CapabilityError> {
        let (stores, store) = (services.object_stores(), &push.store);
        loop {
            if let Some(text) = stores.get(store, cache_info::KEY, cache_info::MAX_LENGTH).await? {
                let checked = cache_info::check(&String::from_utf8_lossy(&text), store_dir);
                return checked.map_err(|what| {
                    let message = format!("object store `{store}`: {what}; use another store");
                    CapabilityError::permanent(message)
                });
            }
            // It is new, or was emptied.
            self.presence.forget(place);
            let settings = &push.settings;
            let text = cache_info::new(store_dir, settings.priority, settings.want_mass_query);
            let attributes = ObjectAttributes::content_type(cache_info::CONTENT_TYPE);
            let wrote = stores.put_new(store, cache_info::KEY, text.into_bytes(), &attributes);
            if wrote.await? == Creation::Created {
                return Ok(());
            }
        }
    }
}

/// What was found about the paths of a push.
#[derive(Default)]
struct Valid {
    infos: Vec<PathInfo>,
    /// The numbers of their groups.
    forms: Vec<usize>,
    /// Paths that are not valid.
    gone: Vec<String>,
}

/// Returns the valid paths among those that were asked for, each once, with the numbers of their
/// groups, and the paths that are not valid.
fn valid(nix: &dyn Backend, asked: Vec<(String, usize)>) -> Result<Valid, CapabilityError> {
    let mut seen = HashSet::new();
    let (paths, groups): (Vec<String>, Vec<usize>) =
        asked.into_iter().filter(|(path, _)| seen.insert(path.clone())).unzip();
    let mut valid = Valid::default();
    let mut next = paths.iter().zip(groups);
    nix.each_info(&paths, &mut |info| {
        let Some((path, group)) = next.next() else { return Ok(()) };
        match info {
            Some(info) => {
                valid.infos.push(info);
                valid.forms.push(group);
            }
            None => valid.gone.push(path.clone()),
        }
        Ok(())
    })?;
    Ok(valid)
}

/// Refuses paths that clients would not accept.
fn check_signatures(push: &Push, infos: &[PathInfo]) -> Result<(), CapabilityError> {
    let settings = &push.settings;
    if settings.allow_unsigned || !settings.keys.is_empty() {
        return Ok(());
    }
    match infos.iter().find(|info| is_unsigned(info)) {
        Some(info) => Err(CapabilityError::refused(format!(
            "{} has no signature, and no key signs it; {}",
            info.path, settings.unsigned_fix
        ))),
        None => Ok(()),
    }
}

/// Returns whether a path has neither a signature nor a content address.
fn is_unsigned(info: &PathInfo) -> bool {
    info.signatures.is_empty() && info.ca.is_none()
}

/// A push that runs.
struct Run<'a> {
    context: &'a Arc<Context>,
    graph: Graph,
    /// Names of the references whose numbers follow those of the paths.
    others: Vec<String>,
    existing: Vec<Existing>,
    stored: Vec<Option<StoredNar>>,
    /// Names of what became present and is not recorded yet.
    present: Vec<presence::Name>,
    steps: JoinSet<Done>,
    look_ups: usize,
    small: usize,
    large: usize,
    publications: usize,
    /// Whether the service has failed.
    ended: bool,
    report: Report,
    progress: &'a (dyn Fn(&Progress<'_>) + Send + Sync),
}

/// Present paths that are recorded together.
const RECORDED_AT_ONCE: usize = 64;

impl<'a> Run<'a> {
    fn new(
        context: &'a Arc<Context>,
        report: Report,
        progress: &'a (dyn Fn(&Progress<'_>) + Send + Sync),
    ) -> Self {
        let infos = &context.infos;
        let elsewhere: HashSet<&str> = context.push.elsewhere.iter().map(String::as_str).collect();
        let paths: Vec<ToPush<'_>> = infos
            .iter()
            .map(|info| ToPush {
                path: &info.path,
                nar_size: info.nar_size,
                references: &info.references,
            })
            .collect();
        let optional = context.push.settings.missing_references;
        let (graph, others) = Graph::new(&paths, |path| optional || elsewhere.contains(path));
        let nar_bytes = infos.iter().map(|info| info.nar_size).sum();
        progress(&Progress::Begun { paths: infos.len() as u64, nar_bytes });
        Self {
            context,
            graph,
            others: others.into_iter().map(ToOwned::to_owned).collect(),
            existing: vec![Existing::Nothing; infos.len()],
            stored: vec![None; infos.len()],
            present: Vec::new(),
            steps: JoinSet::new(),
            look_ups: 0,
            small: 0,
            large: 0,
            publications: 0,
            ended: false,
            report,
            progress,
        }
    }

    async fn run(mut self) -> Result<Report, CapabilityError> {
        loop {
            self.start();
            match self.steps.join_next().await {
                Some(Ok(done)) => self.done(done),
                Some(Err(error)) => {
                    return Err(CapabilityError::transient(format!(
                        "an upload was cut off ({error})"
                    )));
                }
                None => break,
            }
        }
        self.record();
        Ok(self.report)
    }

    /// Starts what may begin.
    fn start(&mut self) {
        while !self.ended && self.look_ups < LOOK_UPS {
            let Some(number) = self.graph.next_to_look_up() else { break };
            self.look_up(number);
        }
        while !self.ended && self.publications < PUBLICATIONS {
            let Some(number) = self.graph.next_to_publish() else { break };
            self.publish(number);
        }
        while !self.ended && self.small < SMALL_NARS {
            let Some(number) = self.graph.next_to_send(Lane::Small) else { break };
            self.small += 1;
            self.send(number);
        }
        while !self.ended && self.large < LARGE_NARS {
            let Some(number) = self.graph.next_to_send(Lane::Large) else { break };
            self.large += 1;
            self.send(number);
        }
    }

    fn path(&self, number: usize) -> &str {
        match self.context.infos.get(number) {
            Some(info) => &info.path,
            None => self.others.get(number - self.context.infos.len()).map_or("", String::as_str),
        }
    }

    fn look_up(&mut self, number: usize) {
        let path = self.path(number).to_owned();
        if self.context.is_known(&path) {
            self.found(number, Found::Present);
            return;
        }
        self.look_ups += 1;
        let context = Arc::clone(self.context);
        self.steps.spawn(async move {
            let found = match context.infos.get(number) {
                Some(info) => publication::look_up(&context, info).await,
                None => publication::has(&context, &path).await.map(|has| {
                    (if has { Found::Present } else { Found::Absent }, Existing::Nothing)
                }),
            };
            Done::LookedUp(number, found.map_err(Trouble::from))
        });
    }

    fn send(&mut self, number: usize) {
        let context = Arc::clone(self.context);
        self.steps.spawn(async move { Done::Sent(number, transfer::send(&context, number).await) });
    }

    fn publish(&mut self, number: usize) {
        self.publications += 1;
        let context = Arc::clone(self.context);
        let existing = self
            .existing
            .get_mut(number)
            .map(|existing| std::mem::replace(existing, Existing::Nothing));
        let stored = self.stored.get(number).cloned().flatten();
        self.steps.spawn(async move {
            let published = match (context.infos.get(number), context.form(number)) {
                (Some(info), Some(form)) => {
                    let compression = format_name(form.compression);
                    let stored = stored.as_ref().map(|stored| (stored, compression));
                    let existing = existing.unwrap_or(Existing::Nothing);
                    publication::publish(&context, info, existing, stored).await
                }
                _ => Err(CapabilityError::invalid("there is no such path".to_owned()).into()),
            };
            Done::Published(number, published)
        });
    }

    fn done(&mut self, done: Done) {
        match done {
            Done::LookedUp(number, result) => {
                self.look_ups -= 1;
                match result {
                    Ok((found, existing)) => {
                        if let Some(place) = self.existing.get_mut(number) {
                            *place = existing;
                        }
                        self.found(number, found);
                    }
                    Err(trouble) => self.failed(number, trouble),
                }
            }
            Done::Sent(number, result) => {
                let nar_size = self.context.infos.get(number).map_or(0, |info| info.nar_size);
                match Lane::of(nar_size) {
                    Lane::Small => self.small -= 1,
                    Lane::Large => self.large -= 1,
                }
                match result {
                    Ok(stored) => {
                        if let Some(place) = self.stored.get_mut(number) {
                            *place = Some(stored);
                        }
                        (self.progress)(&Progress::Stored { path: self.path(number), nar_size });
                        self.graph.stored(number);
                    }
                    Err(trouble) => self.failed(number, trouble),
                }
            }
            Done::Published(number, result) => {
                self.publications -= 1;
                match result {
                    Ok(published) => self.published(number, published),
                    Err(trouble) => self.failed(number, trouble),
                }
            }
        }
    }

    fn found(&mut self, number: usize, found: Found) {
        let stopped = self.graph.looked_up(number, found);
        let is_pushed = number < self.context.infos.len();
        if found == Found::Present {
            self.is_present(number);
            if is_pushed {
                self.report.present += 1;
                let different = matches!(self.existing.get(number), Some(Existing::Different));
                self.report.different += u64::from(different);
                let nar_size = self.context.infos.get(number).map_or(0, |info| info.nar_size);
                (self.progress)(&Progress::Present { path: self.path(number), nar_size });
            }
        } else if !stopped.is_empty() && !is_pushed {
            let store = &self.context.push.store;
            let reference = self.path(number).to_owned();
            let error = CapabilityError::permanent(format!(
                "its reference {reference} is neither pushed nor in the cache of object store \
                 `{store}`; push the whole closure, or say which key of another cache has signed it"
            ));
            self.stop(&stopped, &error);
        }
    }

    fn published(&mut self, number: usize, published: Published) {
        let Some(info) = self.context.infos.get(number) else { return };
        match published {
            Published::New => {
                self.report.uploaded += 1;
                self.report.nar_bytes += info.nar_size;
                let stored = self.stored.get(number).and_then(Option::as_ref);
                self.report.file_bytes += stored.map_or(0, |stored| stored.written.file_size);
                let unsigned = self.context.push.settings.keys.is_empty() && is_unsigned(info);
                self.report.unsigned += u64::from(unsigned);
            }
            Published::Merged => {
                self.report.present += 1;
                self.report.signed += 1;
            }
            Published::Present => self.report.present += 1,
            Published::Different => {
                self.report.present += 1;
                self.report.different += 1;
            }
        }
        (self.progress)(&Progress::Published { path: &info.path });
        self.is_present(number);
        self.graph.published(number);
    }

    fn is_present(&mut self, number: usize) {
        let name = self.context.present_name(self.path(number));
        self.context.caches().presence.note(name);
        self.present.push(name);
        if self.present.len() >= RECORDED_AT_ONCE {
            self.record();
        }
    }

    fn record(&mut self) {
        self.context.caches().presence.record(&std::mem::take(&mut self.present));
    }

    /// A step failed.
    fn failed(&mut self, number: usize, trouble: Trouble) {
        let (error, ends) = match trouble {
            Trouble::Path(error) => (error, false),
            Trouble::Service(error) => (error, true),
        };
        let path = self.path(number).to_owned();
        (self.progress)(&Progress::Failed { path: &path, error: &error });
        self.report.fail(&path, error, ends && !self.ended);
        self.ended |= ends;
        self.graph.failed(number);
    }

    /// Paths cannot be uploaded because of this error.
    fn stop(&mut self, paths: &[usize], error: &CapabilityError) {
        for number in paths {
            let path = self.path(*number).to_owned();
            (self.progress)(&Progress::Failed { path: &path, error });
            self.report.fail(&path, error.clone(), false);
        }
    }
}

/// Returns the value of the line `Compression` of a narinfo.
fn format_name(compression: Compression) -> &'static str {
    match compression {
        Compression::None => "none",
        Compression::Zstd(_) => "zstd",
        Compression::Xz(_) => "xz",
    }
}

#[cfg(test)]
mod tests;
