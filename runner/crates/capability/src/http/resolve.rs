//! Looks a name up once per request. The connection is made to the address that was checked, so
//! that a second DNS answer cannot change it.

use std::io;
use std::net::{IpAddr, SocketAddr};

use futures_util::future::BoxFuture;

use super::address::{self, AddressKind};
use hookrun_config::HttpGrant;
use hookrun_config::http::{Host, HttpUrl};

/// Looks names up. Tests replace it.
pub trait Resolve: std::fmt::Debug + Send + Sync {
    /// Returns all addresses of `name`, in the order in which they are tried.
    fn addresses<'a>(&'a self, name: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>>;
}

/// The system's resolver (`getaddrinfo`): `/etc/hosts`, then DNS, as configured in `nsswitch.conf`.
#[derive(Debug)]
pub struct System;

impl Resolve for System {
    fn addresses<'a>(&'a self, name: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>> {
        Box::pin(async move {
            // The port is not looked up; the function only requires one.
            let found = tokio::net::lookup_host((name, 0)).await?;
            Ok(found.map(|address| address.ip()).collect())
        })
    }
}

/// The reason why no address can be connected to.
#[derive(Debug)]
pub enum Unreachable {
    /// The lookup failed.
    LookUp(io::Error),
    /// The name has no address.
    Nothing,
    /// No address is permitted; this is the first one.
    Prohibited(IpAddr, AddressKind),
}

/// Returns the addresses of `url` that `grant` permits. Connections must be made to exactly
/// these.
///
/// # Errors
/// Returns an error if no address is permitted.
pub async fn permitted(
    resolver: &dyn Resolve,
    url: &HttpUrl,
    grant: &HttpGrant,
) -> Result<Vec<SocketAddr>, Unreachable> {
    let found = match &url.host {
        Host::Address(address) => vec![*address],
        Host::Name(name) => resolver.addresses(name).await.map_err(Unreachable::LookUp)?,
    };
    let mut prohibited = None;
    let mut addresses = Vec::new();
    for address in found {
        match address::permitted(address, &url.host, grant) {
            Ok(()) => addresses.push(SocketAddr::new(address, url.port)),
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
