//! The table of all interfaces that a guest may import: the world `imports` of `hookrun:host`, and
//! one line for each interface of WASI. Nothing is linked elsewhere: the linker is private to this
//! file, and the exported type can only instantiate.

use wasmtime::component::{Component, HasSelf, InstancePre, Linker};
use wasmtime::{Engine, Result};
use wasmtime_wasi::cli::WasiCli;
use wasmtime_wasi::filesystem::WasiFilesystem;
use wasmtime_wasi::p2::bindings::{cli, clocks, filesystem, random, sockets};
use wasmtime_wasi::sockets::WasiSockets;
use wasmtime_wasi_http::WasiHttp;
use wasmtime_wasi_http::p2::bindings::LinkOptions;
use wasmtime_wasi_http::p2::bindings::http::types as http_types;
use wasmtime_wasi_io::bindings::wasi::io;

use super::{RunState, http};
use crate::bindings::http::wasi::http::outgoing_handler;

/// All functions that guests are linked with.
pub struct Imports(Linker<RunState>);

impl Imports {
    /// Links the table for `engine`.
    ///
    /// # Errors
    /// Returns an error if two lines define the same interface, which is a defect of this file.
    pub fn new(engine: &Engine) -> Result<Self> {
        let mut linker = Linker::new(engine);
        capabilities(&mut linker)?;
        counted_wasi(&mut linker)?;
        sending(&mut linker)?;
        empty_wasi(&mut linker)?;
        #[cfg(feature = "escape-drill")]
        super::escape_attempts::add_to_linker(&mut linker)?;
        Ok(Self(linker))
    }

    /// Links `component`.
    ///
    /// # Errors
    /// Returns an error if it imports a function that is not in the table.
    pub fn instantiate_pre(&self, component: &Component) -> Result<InstancePre<RunState>> {
        self.0.instantiate_pre(component)
    }
}

type Own = HasSelf<RunState>;

/// Links the world `imports` of `hookrun:host`, whose functions are one [`RunState::call`] each.
fn capabilities(linker: &mut Linker<RunState>) -> Result<()> {
    crate::bindings::Plugin::add_to_linker::<_, Own>(linker, |state| state)
}

/// Links the parts of WASI that have an effect: [`super::wasi`], [`super::io`].
fn counted_wasi(linker: &mut Linker<RunState>) -> Result<()> {
    clocks::wall_clock::add_to_linker::<_, Own>(linker, |state| state)?;
    clocks::monotonic_clock::add_to_linker::<_, Own>(linker, |state| state)?;
    random::random::add_to_linker::<_, Own>(linker, |state| state)?;
    random::insecure::add_to_linker::<_, Own>(linker, |state| state)?;
    random::insecure_seed::add_to_linker::<_, Own>(linker, |state| state)?;
    io::error::add_to_linker::<_, Own>(linker, |state| state)?;
    io::poll::add_to_linker::<_, Own>(linker, |state| state)?;
    io::streams::add_to_linker::<_, Own>(linker, |state| state)?;
    sockets::tcp_create_socket::add_to_linker::<_, Own>(linker, |state| state)?;
    sockets::udp_create_socket::add_to_linker::<_, Own>(linker, |state| state)
}

/// Links outgoing `wasi:http`. wasmtime-wasi-http builds requests and takes responses apart in the
/// run's own table; sending is one [`RunState::call`] ([`super::http`]).
fn sending(linker: &mut Linker<RunState>) -> Result<()> {
    http_types::add_to_linker::<_, WasiHttp>(
        linker,
        &LinkOptions::default().into(),
        RunState::http,
    )?;
    http::link_error_code(linker)?;
    outgoing_handler::add_to_linker::<_, Own>(linker, |state| state)
}

/// Links the parts of WASI that components of ordinary toolchains import. They have no effect
/// (`super::wasi::context`).
fn empty_wasi(linker: &mut Linker<RunState>) -> Result<()> {
    cli::environment::add_to_linker::<_, WasiCli>(linker, RunState::cli)?;
    cli::exit::add_to_linker::<_, WasiCli>(linker, RunState::cli)?;
    cli::stdin::add_to_linker::<_, WasiCli>(linker, RunState::cli)?;
    cli::stdout::add_to_linker::<_, WasiCli>(linker, RunState::cli)?;
    cli::stderr::add_to_linker::<_, WasiCli>(linker, RunState::cli)?;
    cli::terminal_input::add_to_linker::<_, WasiCli>(linker, RunState::cli)?;
    cli::terminal_output::add_to_linker::<_, WasiCli>(linker, RunState::cli)?;
    cli::terminal_stdin::add_to_linker::<_, WasiCli>(linker, RunState::cli)?;
    cli::terminal_stdout::add_to_linker::<_, WasiCli>(linker, RunState::cli)?;
    cli::terminal_stderr::add_to_linker::<_, WasiCli>(linker, RunState::cli)?;
    filesystem::preopens::add_to_linker::<_, WasiFilesystem>(linker, RunState::filesystem)?;
    filesystem::types::add_to_linker::<_, WasiFilesystem>(linker, RunState::filesystem)?;
    let stable = sockets::network::LinkOptions::default();
    sockets::network::add_to_linker::<_, WasiSockets>(linker, &stable, RunState::sockets)?;
    sockets::instance_network::add_to_linker::<_, WasiSockets>(linker, RunState::sockets)?;
    sockets::ip_name_lookup::add_to_linker::<_, WasiSockets>(linker, RunState::sockets)?;
    sockets::tcp::add_to_linker::<_, WasiSockets>(linker, RunState::sockets)?;
    sockets::udp::add_to_linker::<_, WasiSockets>(linker, RunState::sockets)
}
