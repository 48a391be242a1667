//! WASI as host calls: `wasi:clocks` and `wasi:random` with replaceable sources
//! ([`hookrun_capability::clock`], [`hookrun_capability::random`]), and refusals where WASI would
//! open a socket.
//!
//! The rest is wasmtime's own implementation, linked over views that only this module can create
//! ([`RunState::cli`], [`RunState::filesystem`], [`RunState::sockets`]). It has no arguments, no
//! environment, a closed standard input, no directory, no usable address and no name resolution.
//! Standard output and error are the log of the run.

use std::sync::Arc;
use std::time::Duration;

use wasmtime::Result;
use wasmtime::component::Resource;
use wasmtime_wasi::WasiCtx;
use wasmtime_wasi::cli::WasiCliCtxView;
use wasmtime_wasi::filesystem::WasiFilesystemCtxView;
use wasmtime_wasi::p2::bindings::clocks::{monotonic_clock, wall_clock};
use wasmtime_wasi::p2::bindings::random::{insecure, insecure_seed, random};
use wasmtime_wasi::p2::bindings::sockets::network::{self, ErrorCode, IpAddressFamily};
use wasmtime_wasi::p2::bindings::sockets::{tcp_create_socket, udp_create_socket};
use wasmtime_wasi::p2::{
    DynPollable, IoError, Network, Pollable, SocketError, SocketResult, TcpSocket, UdpSocket,
    subscribe,
};
use wasmtime_wasi::sockets::WasiSocketsCtxView;

use super::{CallContext, HostCall, RunState, WireSize};
use crate::output::GuestOutput;
use hookrun_capability::clock::Clock;
use hookrun_config::Limit;

/// Returns a WASI context that can access only the log.
pub(super) fn context(stdout: &GuestOutput, stderr: &GuestOutput) -> WasiCtx {
    WasiCtx::builder()
        .stdout(stdout.clone())
        .stderr(stderr.clone())
        .allow_tcp(false)
        .allow_udp(false)
        .allow_ip_name_lookup(false)
        .build()
}

impl RunState {
    pub(super) fn cli(&mut self) -> WasiCliCtxView<'_> {
        WasiCliCtxView { ctx: self.wasi.cli(), table: &mut self.wasi_table }
    }

    pub(super) fn filesystem(&mut self) -> WasiFilesystemCtxView<'_> {
        WasiFilesystemCtxView { ctx: self.wasi.filesystem(), table: &mut self.wasi_table }
    }

    pub(super) fn sockets(&mut self) -> WasiSocketsCtxView<'_> {
        WasiSocketsCtxView { ctx: self.wasi.sockets(), table: &mut self.wasi_table }
    }
}

impl WireSize for wall_clock::Datetime {
    fn wire_size(&self) -> u64 {
        0
    }
}

fn datetime(since_1970: Duration) -> wall_clock::Datetime {
    wall_clock::Datetime { seconds: since_1970.as_secs(), nanoseconds: since_1970.subsec_nanos() }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

const WALL: &str = "wasi:clocks/wall-clock";
const MONOTONIC: &str = "wasi:clocks/monotonic-clock";

impl wall_clock::Host for RunState {
    fn now(&mut self) -> Result<wall_clock::Datetime> {
        self.wasi_call(HostCall::wasi(WALL, "now"), |context| {
            Ok(datetime(context.services.clock().wall()))
        })
    }

    fn resolution(&mut self) -> Result<wall_clock::Datetime> {
        self.wasi_call(HostCall::wasi(WALL, "resolution"), |context| {
            Ok(datetime(context.services.clock().resolution()))
        })
    }
}

impl CallContext<'_> {
    /// Returns the time since the run began, by the guest's clock.
    fn run_time(&self) -> Duration {
        self.services.clock().monotonic().saturating_sub(self.begun)
    }

    /// Returns a pollable that is ready when [`CallContext::run_time`] is `until`.
    fn subscribe(&mut self, until: Option<Duration>) -> Result<Resource<DynPollable>> {
        let alarm = Alarm {
            clock: Arc::clone(self.services.clock()),
            until: until.map(|until| self.begun + until),
        };
        let alarm = self.table.push(alarm)?;
        subscribe(self.table, alarm)
    }
}

impl monotonic_clock::Host for RunState {
    fn now(&mut self) -> Result<monotonic_clock::Instant> {
        self.wasi_call(HostCall::wasi(MONOTONIC, "now"), |context| {
            Ok(nanoseconds(context.run_time()))
        })
    }

    fn resolution(&mut self) -> Result<monotonic_clock::Instant> {
        self.wasi_call(HostCall::wasi(MONOTONIC, "resolution"), |context| {
            Ok(nanoseconds(context.services.clock().resolution()))
        })
    }

    fn subscribe_instant(
        &mut self,
        when: monotonic_clock::Instant,
    ) -> Result<Resource<DynPollable>> {
        self.wasi_call(HostCall::wasi(MONOTONIC, "subscribe-instant"), |mut context| {
            context.subscribe(Some(Duration::from_nanos(when)))
        })
    }

    fn subscribe_duration(
        &mut self,
        wait: monotonic_clock::Duration,
    ) -> Result<Resource<DynPollable>> {
        self.wasi_call(HostCall::wasi(MONOTONIC, "subscribe-duration"), |mut context| {
            let until = context.run_time().checked_add(Duration::from_nanos(wait));
            context.subscribe(until)
        })
    }
}

/// The pollable of a clock.
struct Alarm {
    clock: Arc<dyn Clock>,
    /// `None` means never.
    until: Option<Duration>,
}

#[wasmtime_wasi::async_trait]
impl Pollable for Alarm {
    async fn ready(&mut self) {
        match self.until.map(|until| until.saturating_sub(self.clock.monotonic())) {
            // A guest that polls in a loop with a timeout of zero yields to other tasks, as in
            // `Deadline::Past` of wasmtime-wasi 48 (src/p2/host/clocks.rs). It yields each time
            // here, because guests share the executor with the worker.
            Some(Duration::ZERO) => tokio::task::yield_now().await,
            Some(wait) => self.clock.sleep(wait).await,
            None => std::future::pending().await,
        }
    }
}

impl RunState {
    fn random_bytes(
        &mut self,
        interface: &'static str,
        function: &'static str,
        length: u64,
    ) -> Result<Vec<u8>> {
        let allowed = self.limit(Limit::RandomBytes);
        let call = HostCall::wasi(interface, function);
        if length > allowed {
            return Err(self.stop_in(call, Limit::RandomBytes, Some(length)));
        }
        self.wasi_call(call, |context| {
            let mut bytes = vec![0; usize::try_from(length)?];
            context.services.random().fill(&mut bytes);
            Ok(bytes)
        })
    }

    fn random_u64(&mut self, interface: &'static str, function: &'static str) -> Result<u64> {
        self.wasi_call(HostCall::wasi(interface, function), |context| {
            let mut bytes = [0; 8];
            context.services.random().fill(&mut bytes);
            Ok(u64::from_le_bytes(bytes))
        })
    }
}

impl random::Host for RunState {
    fn get_random_bytes(&mut self, length: u64) -> Result<Vec<u8>> {
        self.random_bytes("wasi:random/random", "get-random-bytes", length)
    }

    fn get_random_u64(&mut self) -> Result<u64> {
        self.random_u64("wasi:random/random", "get-random-u64")
    }
}

impl insecure::Host for RunState {
    fn get_insecure_random_bytes(&mut self, length: u64) -> Result<Vec<u8>> {
        self.random_bytes("wasi:random/insecure", "get-insecure-random-bytes", length)
    }

    fn get_insecure_random_u64(&mut self) -> Result<u64> {
        self.random_u64("wasi:random/insecure", "get-insecure-random-u64")
    }
}

impl insecure_seed::Host for RunState {
    fn insecure_seed(&mut self) -> Result<(u64, u64)> {
        self.wasi_call(HostCall::wasi("wasi:random/insecure-seed", "insecure-seed"), |context| {
            let mut seeds = [[0; 8]; 2];
            for seed in &mut seeds {
                context.services.random().fill(seed);
            }
            let [first, second] = seeds.map(u64::from_le_bytes);
            Ok((first, second))
        })
    }
}

/// Converts errors of sockets as wasmtime does.
impl network::Host for RunState {
    fn convert_error_code(&mut self, error: SocketError) -> Result<ErrorCode> {
        network::Host::convert_error_code(&mut self.sockets(), error)
    }

    fn network_error_code(&mut self, error: Resource<IoError>) -> Result<Option<ErrorCode>> {
        network::Host::network_error_code(&mut self.sockets(), error)
    }
}

impl network::HostNetwork for RunState {
    fn drop(&mut self, network: Resource<Network>) -> Result<()> {
        network::HostNetwork::drop(&mut self.sockets(), network)
    }
}

/// Without a socket no function of `wasi:sockets` can be used. wasmtime's own implementation would
/// open one and refuse its use later.
impl tcp_create_socket::Host for RunState {
    fn create_tcp_socket(&mut self, _: IpAddressFamily) -> SocketResult<Resource<TcpSocket>> {
        self.wasi_call(
            HostCall::wasi("wasi:sockets/tcp-create-socket", "create-tcp-socket"),
            |_| Ok(()),
        )
        .map_err(SocketError::trap)?;
        Err(ErrorCode::AccessDenied.into())
    }
}

impl udp_create_socket::Host for RunState {
    async fn create_udp_socket(&mut self, _: IpAddressFamily) -> SocketResult<Resource<UdpSocket>> {
        self.wasi_call(
            HostCall::wasi("wasi:sockets/udp-create-socket", "create-udp-socket"),
            |_| Ok(()),
        )
        .map_err(SocketError::trap)?;
        Err(ErrorCode::AccessDenied.into())
    }
}
