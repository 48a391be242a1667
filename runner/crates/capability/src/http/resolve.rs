//! Looks up a name once per request. The connection goes to the address that was checked, so that a
//! second answer of DNS cannot change it.

use std::io;
use std::net::{IpAddr, SocketAddr};

use futures_util::future::BoxFuture;

use super::address::{self, Kind};
use hookrun_config::HttpGrant;
use hookrun_config::http::{Host, Place};

/// Looks names up. Tests put their own behind it.
pub trait Resolve: std::fmt::Debug + Send + Sync {
    /// All addresses of `name`, in the order in which they are to be tried.
    fn addresses<'a>(&'a self, name: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>>;
}

/// The system's resolver (`getaddrinfo`): `/etc/hosts`, then DNS, as `nsswitch.conf` says.
#[derive(Debug)]
pub struct System;

impl Resolve for System {
    fn addresses<'a>(&'a self, name: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>> {
        Box::pin(async move {
            // The port is not looked up; it is only what the function's type wants.
            let found = tokio::net::lookup_host((name, 0)).await?;
            Ok(found.map(|address| address.ip()).collect())
        })
    }
}

/// Why there is nothing to connect to.
#[derive(Debug)]
pub enum Unreachable {
    /// The look-up failed.
    LookUp(io::Error),
    /// The name has no address.
    Nothing,
    /// None of its addresses is permitted; the first that is not.
    Prohibited(IpAddr, Kind),
}

/// The addresses of `place` that `grant` permits, to be connected to as they are.
///
/// # Errors
/// There is none.
pub async fn permitted(
    resolver: &dyn Resolve,
    place: &Place,
    grant: &HttpGrant,
) -> Result<Vec<SocketAddr>, Unreachable> {
    let found = match &place.host {
        Host::Address(address) => vec![*address],
        Host::Name(name) => resolver.addresses(name).await.map_err(Unreachable::LookUp)?,
    };
    let mut prohibited = None;
    let mut addresses = Vec::new();
    for address in found {
        match address::permitted(address, &place.host, grant) {
            Ok(()) => addresses.push(SocketAddr::new(address, place.port)),
            Err(kind) => {
                prohibited.get_or_insert(Unreachable::Prohibited(address, kind));
            }
        }
    }
    if addresses.is_empty() {
        Err(prohibited.unwrap_or(Unreachable::Nothing))
    } else {
        Ok(addresses)
    }
}
