//! The `mail` interface of `hookrun:host`, through the choke point.

use wasmtime::Result;

use super::{Crossing, HostCall, RunState};
use crate::bindings::hookrun::host::mail::{self, Error, Host};
use hookrun_capability::grants::Need;
use hookrun_capability::mail::{Message, Refusal, Sent};
use hookrun_config::Limit;
use hookrun_nix::outcome::LogLine;

impl Host for RunState {
    async fn send(
        &mut self,
        transport: String,
        recipients: Vec<String>,
        message: mail::Message,
    ) -> Result<Result<mail::Sent, Error>> {
        let sent = transport.crossing() + recipients.crossing() + message.crossing();
        let name = transport.clone();
        let call = HostCall::new(Need::Mail(&transport), "send", sent)
            .items(recipients.len())
            .items(message.headers.len())
            .waiting();
        let size = message.crossing();
        self.call(call, |mut inside| {
            Box::pin(async move {
                inside.within(Limit::MailBytes, size)?;
                inside.spend(Limit::Mails, 1)?;
                let mailer = inside.services().mail();
                let (plugin, task) = (&inside.plugin().plugin, &inside.scope().event);
                let sent = mailer.send(plugin, &name, &recipients, &message.into(), task).await?;
                for Refusal { recipient, transient, reason } in &sent.refused {
                    let next = if *transient {
                        "it will be tried again".to_owned()
                    } else {
                        format!(
                            "correct or remove it in `to` under [plugins.{}.config]",
                            plugin.name
                        )
                    };
                    inside.log().push(LogLine {
                        level: "warn".to_owned(),
                        message: format!("`{recipient}` was refused ({reason}); {next}"),
                        fields: vec![("transport".to_owned(), name.clone())],
                    });
                }
                Ok(sent.into())
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

impl Crossing for mail::Sent {
    fn crossing(&self) -> u64 {
        let Self { message_id, refused } = self;
        message_id.crossing() + refused.crossing()
    }
}

impl Crossing for mail::Refusal {
    fn crossing(&self) -> u64 {
        let Self { recipient, transient: _, reason } = self;
        recipient.crossing() + reason.crossing()
    }
}

impl From<Sent> for mail::Sent {
    fn from(Sent { message_id, refused }: Sent) -> Self {
        let refused = refused
            .into_iter()
            .map(|Refusal { recipient, transient, reason }| mail::Refusal {
                recipient,
                transient,
                reason,
            })
            .collect();
        Self { message_id, refused }
    }
}

impl From<mail::Message> for Message {
    fn from(message: mail::Message) -> Self {
        let mail::Message { subject, text, html, headers, identity, in_reply_to } = message;
        Self { subject, text, html, headers, identity, in_reply_to }
    }
}
