//! The `mail` interface of `hookrun:host`, through the choke point.

use wasmtime::Result;

use super::Message;
use crate::config::Limit;
use crate::plugin::bindings::hookrun::host::mail::{self, Error, Host};
use crate::plugin::grants::Need;
use crate::plugin::host_call::{Crossing, HostCall, RunState};

impl Host for RunState {
    async fn send(
        &mut self,
        transport: String,
        recipients: Vec<String>,
        message: mail::Message,
    ) -> Result<Result<String, Error>> {
        let sent = transport.crossing() + recipients.crossing() + message.crossing();
        let name = transport.clone();
        let call = HostCall::new(Need::Mail(&transport), "send", sent)
            .items(recipients.len())
            .items(message.headers.len())
            .lasting();
        let size = message.crossing();
        self.call(call, |mut inside| {
            Box::pin(async move {
                inside.within(Limit::MailBytes, size)?;
                inside.spend(Limit::Mails, 1)?;
                let mailer = inside.services().mail();
                mailer.send(&inside.plugin().plugin, &name, &recipients, &message.into()).await
            })
        })
        .await
    }
}

impl Crossing for mail::Message {
    fn crossing(&self) -> u64 {
        let Self { subject, text, html, headers, identity, in_reply_to } = self;
        subject.crossing()
            + text.crossing()
            + html.crossing()
            + headers.crossing()
            + identity.crossing()
            + in_reply_to.crossing()
    }
}

impl From<mail::Message> for Message {
    fn from(message: mail::Message) -> Self {
        let mail::Message { subject, text, html, headers, identity, in_reply_to } = message;
        Self { subject, text, html, headers, identity, in_reply_to }
    }
}
