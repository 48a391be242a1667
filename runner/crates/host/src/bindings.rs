//! The component bindings, generated from `plugin-sdk/wit`. One world has all imports and all
//! hooks. A plugin exports only some of the hooks, so the world as a whole is never instantiated:
//! [`super::linked`] looks up each interface separately.
//!
//! Every import is `async` (a guest waits without holding a thread) and `trappable` (a limit can
//! end the run during a host call). Only this crate and [`hookrun_capability`] use this module; all
//! others use the types of [`hookrun_nix::event`] and [`hookrun_nix::outcome`].

#![allow(
    unused_variables,
    clippy::all,
    clippy::pedantic,
    reason = "generated code; the documentation is in the WIT"
)]

/// `wasi:http/outgoing-handler`, whose `handle` is a host call of this crate. `wasi:http/types` is
/// implemented by wasmtime-wasi-http.
pub mod http {
    wasmtime::component::bindgen!({
        path: "../../../plugin-sdk/wit/wasi-http-0.2.12",
        inline: "
            package hookrun:sender;

            world sender {
                import wasi:http/outgoing-handler@0.2.12;
            }
        ",
        world: "hookrun:sender/sender",
        imports: { default: async | trappable },
        with: {
            "wasi:http/types": wasmtime_wasi_http::p2::bindings::http::types,
            "wasi:io": wasmtime_wasi::p2::bindings::io,
            "wasi:clocks": wasmtime_wasi::p2::bindings::clocks,
        },
        require_store_data_send: true,
    });
}

wasmtime::component::bindgen!({
    path: [
        "../../../plugin-sdk/wit/host-0.1.0",
        "../../../plugin-sdk/wit/post-build-0.1.0",
        "../../../plugin-sdk/wit/diff-0.1.0",
        "../../../plugin-sdk/wit/builder-selection-0.1.0",
    ],
    inline: "
        package hookrun:runner;

        world plugin {
            include hookrun:host/imports@0.1.0;
            export hookrun:post-build/post-build@0.1.0;
            export hookrun:diff/diff@0.1.0;
            export hookrun:builder-selection/builder-selection@0.1.0;
        }
    ",
    imports: { default: async | trappable },
    exports: { default: async },
    with: {
        "hookrun:host/nix-store.nar": hookrun_capability::nix_store::Nar,
    },
    require_store_data_send: true,
});
