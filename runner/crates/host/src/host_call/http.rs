//! The host function that sends requests, `wasi:http/outgoing-handler.handle`, as one host call,
//! and the state of `wasi:http` in a run.
//!
//! The rest of `wasi:http/types` builds requests and takes responses apart in the run's own table,
//! in wasmtime-wasi-http. It accesses nothing outside the run, and is bounded by the number of
//! handles and by `http-header-bytes`. Bodies are passed in the streams of [`super::io`].

use std::sync::Arc;

use http::{HeaderMap, HeaderName};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use wasmtime::Result;
use wasmtime::component::{Linker, Resource};
use wasmtime_wasi::runtime::AbortOnDropJoinHandle;
use wasmtime_wasi_http::p2::bindings::http::types::{
    ErrorCode, FutureIncomingResponse, IoError, Method, OutgoingRequest, RequestOptions, Scheme,
};
use wasmtime_wasi_http::{
    DEFAULT_FORBIDDEN_HEADERS, Error, ForbiddenHeaderFilter, WasiBody, WasiHttpCtx,
    WasiHttpCtxView, WasiHttpHooks,
};

use super::{CallContext, HostCall, RunState, WireSize};
use crate::bindings::http::wasi::http::outgoing_handler::Host;
use hookrun_capability::grants::Need;
use hookrun_capability::http::{About, Exchange, HttpResponse, header_bytes, stream_error_code};
use hookrun_capability::{CapabilityError, ErrorKind};
use hookrun_config::Capability;
use hookrun_config::http::{HttpTarget, HttpUrl, granting};
use hookrun_config::{Limit, Limits};
use hookrun_nix::outcome::LogLine;

/// The linked version. A guest may import any compatible one.
const TYPES: &str = "wasi:http/types@0.2.12";

/// Headers beside [`DEFAULT_FORBIDDEN_HEADERS`] that belong to the connection and not to the guest:
/// `te` (RFC 9110 section 10.1.4), and `expect` (section 10.1.1), whose interim response is not
/// waited for.
const ALSO_FORBIDDEN: [HeaderName; 2] = [http::header::TE, http::header::EXPECT];

/// The memory that a header takes in the worst case, as a multiple of its bytes. wasmtime's limit
/// is on memory, hookrun's is on the bytes sent. A guest that exceeds even wasmtime's limit ends
/// its run.
const FIELD_OVERHEAD: u64 = 4;

/// The state of `wasi:http` in one run.
pub(super) struct RunHttp {
    ctx: WasiHttpCtx,
    hooks: Hooks,
    slots: Arc<Semaphore>,
}

impl RunHttp {
    /// Creates the state for a run with these limits.
    pub(super) fn new(limits: &Limits) -> Self {
        let size = |limit| usize::try_from(limits.get(limit)).unwrap_or(usize::MAX);
        let mut ctx = WasiHttpCtx::new();
        let fields = limits.get(Limit::HttpHeaderBytes).saturating_mul(FIELD_OVERHEAD);
        ctx.set_field_size_limit(usize::try_from(fields).unwrap_or(usize::MAX));
        let slots = size(Limit::HttpConnections).min(Semaphore::MAX_PERMITS);
        Self { ctx, hooks: Hooks, slots: Arc::new(Semaphore::new(slots)) }
    }
}

/// The hooks that wasmtime-wasi-http requires from its host.
#[derive(Debug, Clone, Copy)]
struct Hooks;

impl WasiHttpHooks for Hooks {
    fn forbidden_header_filter(&mut self) -> ForbiddenHeaderFilter {
        Arc::new(|name| DEFAULT_FORBIDDEN_HEADERS.contains(name) || ALSO_FORBIDDEN.contains(name))
    }

    /// Is called only by wasmtime-wasi-http's own `handle`, which is not linked.
    fn send_request(
        &mut self,
        _request: http::Request<WasiBody>,
        _options: Option<RequestOptions>,
        _worker: Box<dyn Future<Output = Result<(), Error>> + Send>,
    ) -> Box<
        dyn Future<
                Output = Result<
                    (http::Response<WasiBody>, Box<dyn Future<Output = Result<(), Error>> + Send>),
                    Error,
                >,
            > + Send,
    > {
        Box::new(std::future::ready(Err(Error::HttpRequestDenied)))
    }
}

/// The parsed request of a guest.
#[derive(Clone)]
struct ParsedRequest {
    target: HttpTarget,
    path_and_query: String,
}

impl ParsedRequest {
    /// # Errors
    /// What was asked for, and what is odd about it.
    fn read(request: &OutgoingRequest) -> Result<Self, String> {
        let method = method(&request.method);
        let scheme = match &request.scheme {
            Some(Scheme::Http) => "http",
            // RFC 9110 section 4.2.2; wasi:http leaves the default to the host.
            Some(Scheme::Https) | None => "https",
            Some(Scheme::Other(other)) => other,
        };
        let authority = request.authority.as_deref().unwrap_or_default();
        let path_with_query = request.path_with_query.as_deref().unwrap_or_default();
        let (path, query) = match path_with_query.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (path_with_query, None),
        };
        // The authority is not repeated in the message, because it may hold a password.
        let odd =
            |what: &str| format!("http request `{method} {}`: its URL {what}", path.escape_debug());
        let url = HttpUrl::of(scheme, authority, path).map_err(|flaw| odd(&flaw.to_string()))?;
        if query
            .is_some_and(|query| !query.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#'))
        {
            return Err(odd(
                "has a query with a character that does not belong there; percent-encode it",
            ));
        }
        let query = query.map(|query| format!("?{query}")).unwrap_or_default();
        let path_and_query = format!("{}{query}", url.path.as_str());
        Ok(Self { target: HttpTarget { method: method.to_owned(), url }, path_and_query })
    }
}

fn method(method: &Method) -> &str {
    match method {
        Method::Get => "GET",
        Method::Head => "HEAD",
        Method::Post => "POST",
        Method::Put => "PUT",
        Method::Delete => "DELETE",
        Method::Connect => "CONNECT",
        Method::Options => "OPTIONS",
        Method::Trace => "TRACE",
        Method::Patch => "PATCH",
        Method::Other(other) => other,
    }
}

/// A pending response. No part of it has been passed to the guest yet.
impl WireSize for AbortOnDropJoinHandle<Result<HttpResponse, Error>> {
    fn wire_size(&self) -> u64 {
        0
    }
}

impl Host for RunState {
    async fn handle(
        &mut self,
        request: Resource<OutgoingRequest>,
        options: Option<Resource<RequestOptions>>,
    ) -> Result<Result<Resource<FutureIncomingResponse>, ErrorCode>> {
        let options =
            options.map(|options| self.wasi_table.delete(options)).transpose()?.unwrap_or_default();
        let request = self.wasi_table.delete(request)?;
        let asked = ParsedRequest::read(&request);
        let need = asked
            .as_ref()
            .map_or(Need::Wanted(Capability::Http), |asked| Need::Http(&asked.target));
        let headers = HeaderMap::from(request.headers);
        let sent = header_bytes(&headers)
            + request.path_with_query.as_ref().map_or(0, |path| path.len() as u64);
        let call = HostCall::new(need, "handle", sent);
        let asked =
            asked.clone().map_err(|odd| format!("plugin `{}`: {odd}", self.plugin.plugin.name));
        let (body, slot) = (request.body, self.http.slots.clone().try_acquire_owned().ok());
        let passed = self
            .guarded(call, |context| {
                let sending = asked
                    .map_err(CapabilityError::invalid)
                    .and_then(|asked| exchange(&context, asked, headers, options, slot))
                    .map(|exchange| wasmtime_wasi::runtime::spawn(exchange.run(body)));
                Box::pin(std::future::ready(sending))
            })
            .await?;
        let error = match passed {
            Ok(Ok(sending)) => {
                return Ok(Ok(self.wasi_table.push(FutureIncomingResponse::Pending(sending))?));
            }
            Ok(Err(error)) => error,
            Err(refused) => self.explain(&refused),
        };
        // The guest gets an error code; the message is for the operator.
        self.log.push(LogLine {
            level: "warn".to_owned(),
            message: error.message,
            fields: Vec::new(),
        });
        Ok(Err(match error.kind {
            ErrorKind::Invalid => ErrorCode::HttpRequestUriInvalid,
            ErrorKind::Limit => ErrorCode::HttpRequestHeaderSectionSize(None),
            _ => ErrorCode::HttpRequestDenied,
        }))
    }
}

fn exchange(
    context: &CallContext<'_>,
    asked: ParsedRequest,
    headers: HeaderMap,
    options: RequestOptions,
    slot: Option<OwnedSemaphorePermit>,
) -> Result<Exchange, CapabilityError> {
    let ParsedRequest { target, path_and_query } = asked;
    let plugin = context.plugin();
    let grant = granting(&plugin.effective.http, &target).map_err(|miss| {
        CapabilityError::denied(miss.message(&plugin.plugin.name, &plugin.config_file))
    })?;
    let about = About {
        target: target.to_string(),
        plugin: plugin.plugin.name.clone(),
        limits: plugin.plugin.limits.clone(),
        log: context.log().clone(),
    };
    Ok(Exchange {
        client: context.services().http().clone(),
        about: Arc::new(about),
        grant: grant.clone(),
        target,
        path_and_query,
        headers,
        options,
        script: context.services().script().cloned(),
        slot,
    })
}

impl RunState {
    /// Returns the state for the functions of `wasi:http/types`. They cannot return a refusal, so
    /// they are counted here, and the next call that can end the run does.
    pub(super) fn http(&mut self) -> WasiHttpCtxView<'_> {
        self.wasi_calls = self.wasi_calls.saturating_add(1);
        let RunHttp { ctx, hooks, slots: _ } = &mut self.http;
        WasiHttpCtxView { ctx, table: &mut self.wasi_table, hooks }
    }
}

/// Links `http-error-code` again. [`stream_error_code`] has the reason.
///
/// # Errors
/// Returns an error if the linker does not have `wasi:http/types`.
pub(super) fn link_error_code(linker: &mut Linker<RunState>) -> Result<()> {
    linker.allow_shadowing(true);
    linker.instance(TYPES)?.func_wrap(
        "http-error-code",
        |mut store: wasmtime::StoreContextMut<'_, RunState>, (error,): (Resource<IoError>,)| {
            let error = store.data_mut().wasi_table.get(&error)?;
            Ok((stream_error_code(error),))
        },
    )?;
    linker.allow_shadowing(false);
    Ok(())
}
