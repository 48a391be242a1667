//! `wasi:io` as host calls: pollables and streams.
//!
//! wasmtime's table does the work. Here every call is counted, its bytes are bounded, and its
//! waiting ends with the run. Streams keep their own limits: the log accepts [`crate::output`]'s
//! budget in one write and drops bytes over its limit. Closing a handle is never refused.

use futures_util::future::BoxFuture;
use wasmtime::Result;
use wasmtime::component::{Resource, ResourceTable};
use wasmtime_wasi::p2::{
    DynInputStream, DynOutputStream, DynPollable, IoError, StreamError, StreamResult,
};
use wasmtime_wasi_io::bindings::wasi::io::{error, poll, streams};

use super::{HostCall, RunState, WireSize};
use hookrun_config::Limit;

impl RunState {
    /// Runs a call that does not wait.
    fn stream_now<R: WireSize>(
        &mut self,
        function: &'static str,
        sent: u64,
        work: impl FnOnce(&mut ResourceTable) -> StreamResult<R>,
    ) -> StreamResult<R> {
        let call = HostCall::wasi("wasi:io/streams", function).sending(sent);
        self.wasi_call(call, |context| Ok(CountedResult(work(context.table))))
            .map_err(StreamError::Trap)?
            .0
    }

    /// Runs a call that may wait.
    async fn stream<R, F>(&mut self, function: &'static str, sent: u64, work: F) -> StreamResult<R>
    where
        R: WireSize + Send + 'static,
        F: for<'r> FnOnce(&'r mut ResourceTable) -> BoxFuture<'r, StreamResult<R>> + Send,
    {
        let call = HostCall::wasi("wasi:io/streams", function).sending(sent);
        let work = self.wasi_waiting(call, |table| {
            let work = work(table);
            Box::pin(async move { Ok(CountedResult(work.await)) })
        });
        work.await.map_err(StreamError::Trap)?.0
    }

    /// Returns the maximum number of bytes of one read, which is the limit of bytes in one call.
    fn most(&self, length: u64) -> u64 {
        length.min(self.limit(Limit::CallBytes))
    }
}

/// A stream's result, which is passed on unchanged. Only its bytes are counted.
struct CountedResult<R>(StreamResult<R>);

impl<R: WireSize> WireSize for CountedResult<R> {
    fn wire_size(&self) -> u64 {
        self.0.as_ref().map_or(0, WireSize::wire_size)
    }
}

impl poll::Host for RunState {
    async fn poll(&mut self, pollables: Vec<Resource<DynPollable>>) -> Result<Vec<u32>> {
        let call = HostCall::wasi("wasi:io/poll", "poll").items(pollables.len());
        self.wasi_waiting(call, |table| Box::pin(poll::Host::poll(table, pollables))).await
    }
}

impl poll::HostPollable for RunState {
    async fn block(&mut self, pollable: Resource<DynPollable>) -> Result<()> {
        let call = HostCall::wasi("wasi:io/poll", "pollable.block");
        self.wasi_waiting(call, |table| Box::pin(poll::HostPollable::block(table, pollable))).await
    }

    async fn ready(&mut self, pollable: Resource<DynPollable>) -> Result<bool> {
        let call = HostCall::wasi("wasi:io/poll", "pollable.ready");
        self.wasi_waiting(call, |table| Box::pin(poll::HostPollable::ready(table, pollable))).await
    }

    fn drop(&mut self, pollable: Resource<DynPollable>) -> Result<()> {
        poll::HostPollable::drop(&mut self.wasi_table, pollable)
    }
}

impl error::Host for RunState {}

impl error::HostError for RunState {
    fn to_debug_string(&mut self, error: Resource<IoError>) -> Result<String> {
        let call = HostCall::wasi("wasi:io/error", "error.to-debug-string");
        self.wasi_call(call, |context| error::HostError::to_debug_string(context.table, error))
    }

    fn drop(&mut self, error: Resource<IoError>) -> Result<()> {
        error::HostError::drop(&mut self.wasi_table, error)
    }
}

impl streams::Host for RunState {
    fn convert_stream_error(&mut self, error: StreamError) -> Result<streams::StreamError> {
        streams::Host::convert_stream_error(&mut self.wasi_table, error)
    }
}

impl streams::HostInputStream for RunState {
    fn read(&mut self, stream: Resource<DynInputStream>, length: u64) -> StreamResult<Vec<u8>> {
        let length = self.most(length);
        self.stream_now("input-stream.read", 0, |table| {
            streams::HostInputStream::read(table, stream, length)
        })
    }

    async fn blocking_read(
        &mut self,
        stream: Resource<DynInputStream>,
        length: u64,
    ) -> StreamResult<Vec<u8>> {
        let length = self.most(length);
        self.stream("input-stream.blocking-read", 0, |table| {
            Box::pin(streams::HostInputStream::blocking_read(table, stream, length))
        })
        .await
    }

    fn skip(&mut self, stream: Resource<DynInputStream>, length: u64) -> StreamResult<u64> {
        let length = self.most(length);
        self.stream_now("input-stream.skip", 0, |table| {
            streams::HostInputStream::skip(table, stream, length)
        })
    }

    async fn blocking_skip(
        &mut self,
        stream: Resource<DynInputStream>,
        length: u64,
    ) -> StreamResult<u64> {
        let length = self.most(length);
        self.stream("input-stream.blocking-skip", 0, |table| {
            Box::pin(streams::HostInputStream::blocking_skip(table, stream, length))
        })
        .await
    }

    fn subscribe(&mut self, stream: Resource<DynInputStream>) -> Result<Resource<DynPollable>> {
        let call = HostCall::wasi("wasi:io/streams", "input-stream.subscribe");
        self.wasi_call(call, |context| streams::HostInputStream::subscribe(context.table, stream))
    }

    async fn drop(&mut self, stream: Resource<DynInputStream>) -> Result<()> {
        streams::HostInputStream::drop(&mut self.wasi_table, stream).await
    }
}

impl streams::HostOutputStream for RunState {
    fn check_write(&mut self, stream: Resource<DynOutputStream>) -> StreamResult<u64> {
        self.stream_now("output-stream.check-write", 0, |table| {
            streams::HostOutputStream::check_write(table, stream)
        })
    }

    fn write(&mut self, stream: Resource<DynOutputStream>, bytes: Vec<u8>) -> StreamResult<()> {
        self.stream_now("output-stream.write", bytes.wire_size(), |table| {
            streams::HostOutputStream::write(table, stream, bytes)
        })
    }

    async fn blocking_write_and_flush(
        &mut self,
        stream: Resource<DynOutputStream>,
        bytes: Vec<u8>,
    ) -> StreamResult<()> {
        self.stream("output-stream.blocking-write-and-flush", bytes.wire_size(), |table| {
            Box::pin(streams::HostOutputStream::blocking_write_and_flush(table, stream, bytes))
        })
        .await
    }

    fn flush(&mut self, stream: Resource<DynOutputStream>) -> StreamResult<()> {
        self.stream_now("output-stream.flush", 0, |table| {
            streams::HostOutputStream::flush(table, stream)
        })
    }

    async fn blocking_flush(&mut self, stream: Resource<DynOutputStream>) -> StreamResult<()> {
        self.stream("output-stream.blocking-flush", 0, |table| {
            Box::pin(streams::HostOutputStream::blocking_flush(table, stream))
        })
        .await
    }

    fn subscribe(&mut self, stream: Resource<DynOutputStream>) -> Result<Resource<DynPollable>> {
        let call = HostCall::wasi("wasi:io/streams", "output-stream.subscribe");
        self.wasi_call(call, |context| streams::HostOutputStream::subscribe(context.table, stream))
    }

    fn write_zeroes(&mut self, stream: Resource<DynOutputStream>, length: u64) -> StreamResult<()> {
        // The zeroes are counted like other bytes, because the other side receives as many.
        self.stream_now("output-stream.write-zeroes", length, |table| {
            streams::HostOutputStream::write_zeroes(table, stream, length)
        })
    }

    async fn blocking_write_zeroes_and_flush(
        &mut self,
        stream: Resource<DynOutputStream>,
        length: u64,
    ) -> StreamResult<()> {
        self.stream("output-stream.blocking-write-zeroes-and-flush", length, |table| {
            Box::pin(streams::HostOutputStream::blocking_write_zeroes_and_flush(
                table, stream, length,
            ))
        })
        .await
    }

    fn splice(
        &mut self,
        stream: Resource<DynOutputStream>,
        source: Resource<DynInputStream>,
        length: u64,
    ) -> StreamResult<u64> {
        let length = self.most(length);
        self.stream_now("output-stream.splice", 0, |table| {
            streams::HostOutputStream::splice(table, stream, source, length)
        })
    }

    async fn blocking_splice(
        &mut self,
        stream: Resource<DynOutputStream>,
        source: Resource<DynInputStream>,
        length: u64,
    ) -> StreamResult<u64> {
        let length = self.most(length);
        self.stream("output-stream.blocking-splice", 0, |table| {
            Box::pin(streams::HostOutputStream::blocking_splice(table, stream, source, length))
        })
        .await
    }

    async fn drop(&mut self, stream: Resource<DynOutputStream>) -> Result<()> {
        streams::HostOutputStream::drop(&mut self.wasi_table, stream).await
    }
}
