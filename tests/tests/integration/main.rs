//! The end-to-end tests, in one program: each links the whole engine, so a program for each file
//! would cost more time than running it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a failed assumption has to fail the test"
)]

mod attack;
mod bad_input;
mod book;
mod both_programs;
mod builders;
mod builders_commands;
mod bundled_policy;
mod cache;
mod canary;
mod ci;
mod configuration_page;
mod crash;
mod demo;
mod dispatch;
mod documents;
mod escape;
mod every_limit;
mod example_plugins;
mod examples;
mod faults;
mod fuzz_corpus;
mod gate;
mod grants;
mod hostile;
mod hostile_artifacts;
mod http;
mod http_hostile;
mod lab;
mod limits;
mod local_machine;
mod machines;
mod mail;
mod new_plugin;
mod nondeterminism;
mod operator;
mod post_build;
mod queue;
mod reload;
mod resources;
mod runner;
mod sandbox;
mod scenarios;
mod schemas;
mod service;
mod signals;
mod ssh;
mod stores;
mod upload;
mod wasi;
mod webhook;
