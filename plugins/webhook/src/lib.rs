//! A bundled plugin that posts a message about each build or difference to an HTTP endpoint.
//!
//! An event becomes a [`mod@notice`]: the values that a [`template`] can show. [`mod@message`]
//! writes the request in the format of the service, and [`response`] decides from the answer
//! whether to try again. Only this file calls the host, so everything else is tested without one.
//! The credential is added by the host, according to the grant, and never enters the plugin.
//!
//! ```toml
//! [plugins.chat]
//! source = "bundled:webhook"
//! config = { format = "slack", url = "https://slack.com/api/chat.postMessage", channel = "#builds" }
//!
//! [[plugins.chat.grant.http]]
//! url = "https://slack.com/api/chat.postMessage"
//! methods = ["POST"]
//! credential = "slack"
//!
//! [http-credentials.slack]
//! kind = "bearer"
//! token-file = "/etc/hookrun/secrets/slack-bot-token"
//! ```

pub mod message;
pub mod notice;
pub mod response;
pub mod settings;
pub mod template;

use std::time::SystemTime;

use hookrun_sdk::{Diff, Failure, Outcome, PostBuild, Want, Wants, diff, http, post_build};

use message::Message;
use notice::Notice;
use settings::Settings;

struct Webhook;

impl PostBuild for Webhook {
    fn handle(event: post_build::Event) -> Result<Outcome, Failure> {
        send(&Notice::built(&event)?)
    }
}

impl Diff for Webhook {
    fn handle(event: diff::Event) -> Result<Outcome, Failure> {
        send(&Notice::differs(&event)?)
    }
}

hookrun_sdk::plugin! {
    plugin: Webhook,
    hooks: [PostBuild, Diff],
    wants: Wants { http: Want::Required, ..Wants::NOTHING },
    config_schema: settings::SCHEMA,
}

fn send(notice: &Notice) -> Result<Outcome, Failure> {
    let settings: Settings = hookrun_sdk::config()?;
    let Message { method, url, body } =
        Message::new(&settings, notice).map_err(Failure::permanent)?;
    let response = http::Request::new(method, url)
        .header("idempotency-key", format!("\"{}\"", notice.id))
        .json(&body)?
        .send()?;
    response::judge(&settings, &response, SystemTime::now())?;
    let name = notice.value("name");
    Ok(Outcome::new(format!("announced {name}")).detail("status", response.status))
}
