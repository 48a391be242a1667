//! Direct calls of WASI, without the standard library.

use std::fmt::Write as _;

use wasip2::cli::{environment, stdin};
use wasip2::clocks::{monotonic_clock, wall_clock};
use wasip2::filesystem::preopens;
use wasip2::io::poll;
use wasip2::random::{insecure, insecure_seed, random};
use wasip2::sockets::network::IpAddressFamily;
use wasip2::sockets::{instance_network, ip_name_lookup, tcp_create_socket, udp_create_socket};

const DAY: u64 = 24 * 3600 * 1_000_000_000;

pub(crate) fn sleep_for_a_day() {
    monotonic_clock::subscribe_duration(DAY).block();
}

pub(crate) fn timers(count: usize) {
    let _held: Vec<_> = (0..count).map(|_| monotonic_clock::subscribe_duration(DAY)).collect();
}

pub(crate) fn poll(count: usize) {
    let timer = monotonic_clock::subscribe_duration(0);
    poll::poll(&vec![&timer; count]);
}

/// Reads the clock so many times and returns the last value. The values never decrease.
pub(crate) fn clock(times: usize) -> String {
    let mut last = 0;
    for _ in 0..times {
        let now = monotonic_clock::now();
        assert!(now >= last, "a monotonic clock is monotonic");
        last = now;
    }
    format!("{last} ns")
}

pub(crate) fn random(length: u64) -> usize {
    random::get_random_bytes(length).len()
}

/// Returns one line for each part of WASI, with what it offers or why it fails.
pub(crate) fn look_around() -> String {
    let mut found = String::new();
    let _ = writeln!(found, "arguments {}", environment::get_arguments().len());
    let _ = writeln!(found, "variables {}", environment::get_environment().len());
    let _ = writeln!(found, "working directory {:?}", environment::initial_cwd());
    let _ = writeln!(found, "preopens {}", preopens::get_directories().len());
    let _ = writeln!(
        found,
        "stdin {:?}",
        stdin::get_stdin().blocking_read(10).map_err(|error| error.to_string())
    );
    let _ = writeln!(
        found,
        "file {}",
        std::fs::read("/etc/passwd").map_or_else(|error| error.to_string(), |_| "read".into())
    );
    let _ = writeln!(
        found,
        "new file {}",
        std::fs::write("/tmp/x", "x").map_or_else(|error| error.to_string(), |()| "written".into())
    );
    let _ = writeln!(
        found,
        "tcp {:?}",
        tcp_create_socket::create_tcp_socket(IpAddressFamily::Ipv4).map(|_| "a socket")
    );
    let _ = writeln!(
        found,
        "udp {:?}",
        udp_create_socket::create_udp_socket(IpAddressFamily::Ipv6).map(|_| "a socket")
    );
    let network = instance_network::instance_network();
    let _ = writeln!(
        found,
        "name {:?}",
        ip_name_lookup::resolve_addresses(&network, "localhost").map(|_| "addresses")
    );
    let connected = std::net::TcpStream::connect("127.0.0.1:80")
        .map_or_else(|error| error.kind().to_string(), |_| "connected".into());
    let _ = write!(found, "connection {connected}");
    found
}

pub(crate) fn look_up() -> String {
    let wall = wall_clock::now();
    let mut bytes = random::get_random_bytes(4);
    bytes.extend(insecure::get_insecure_random_bytes(4));
    let begun = monotonic_clock::now();
    monotonic_clock::subscribe_instant(begun + 3_600_000_000_000).block();
    format!(
        "wall {}.{:09}, monotonic {begun} then {}, bytes {bytes:?}, {} {} {:?}",
        wall.seconds,
        wall.nanoseconds,
        monotonic_clock::now(),
        random::get_random_u64(),
        insecure::get_insecure_random_u64(),
        insecure_seed::insecure_seed(),
    )
}
