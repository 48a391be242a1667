//! The `mail` interface of `hookrun:host` as host calls.

use wasmtime::Result;

use super::wire_size::wave_record;
use super::{HostCall, RunState, WireSize};
use crate::bindings::hookrun::host::mail::{self, Error, Host};
use hookrun_capability::grants::Need;
use hookrun_capability::mail::{Message, Refusal, Sent};
use hookrun_config::Capability;
use hookrun_config::Limit;
use hookrun_nix::outcome::LogLine;

impl Host for RunState {
    async fn send(
        &mut self,
        transport: String,
        recipients: Vec<String>,
        message: mail::Message,
    ) -> Result<Result<mail::Sent, Error>> {
        self.trace(&[&transport, &recipients, &message]);
        let sent = transport.wire_size() + recipients.wire_size() + message.wire_size();
        let name = transport.clone();
        let call = HostCall::new(Need::Named(Capability::Mail, &transport), "send", sent)
            .items(recipients.len())
            .items(message.headers.len())
            .waiting();
        let size = message.wire_size();
        self.call(call, |mut context| {
            Box::pin(async move {
                context.within(Limit::MailBytes, size)?;
                context.spend(Limit::Mails, 1)?;
                let mailer = context.services().mail();
                let (plugin, task) = (&context.plugin().plugin, &context.scope().event);
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
                    context.log().push(LogLine {
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

impl WireSize for mail::Message {
    fn wire_size(&self) -> u64 {
        let Self { subject, text, html, headers, identity, in_reply_to } = self;
        subject.wire_size()
            + text.wire_size()
            + html.wire_size()
            + headers.wire_size()
            + identity.wire_size()
            + in_reply_to.wire_size()
    }

    fn wave(&self, text: &mut String) {
        let Self { subject, text: plain, html, headers, identity, in_reply_to } = self;
        let fields: [(&str, &dyn WireSize); 6] = [
            ("subject", subject),
            ("text", plain),
            ("html", html),
            ("headers", headers),
            ("identity", identity),
            ("in-reply-to", in_reply_to),
        ];
        wave_record(text, &fields);
    }
}

impl WireSize for mail::Sent {
    fn wire_size(&self) -> u64 {
        let Self { message_id, refused } = self;
        message_id.wire_size() + refused.wire_size()
    }

    fn wave(&self, text: &mut String) {
        let Self { message_id, refused } = self;
        wave_record(text, &[("message-id", message_id), ("refused", refused)]);
    }
}

impl WireSize for mail::Refusal {
    fn wire_size(&self) -> u64 {
        let Self { recipient, transient: _, reason } = self;
        recipient.wire_size() + reason.wire_size()
    }

    fn wave(&self, text: &mut String) {
        let Self { recipient, transient, reason } = self;
        wave_record(
            text,
            &[("recipient", recipient), ("transient", transient), ("reason", reason)],
        );
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
