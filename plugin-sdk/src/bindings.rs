//! The bindings generated from `wit/`: one world for all imports from the host, and one for each
//! hook, so that a plugin exports only the hooks that it has. The linker merges the worlds that a
//! component uses.

pub mod imports {
    wit_bindgen::generate!({
        path: ["wit/host-0.1.0"],
        world: "hookrun:host/imports",
        generate_all,
        additional_derives: [PartialEq],
        runtime_path: "::hookrun_sdk::__private::wit_bindgen::rt",
    });
}

/// The bindings of `wasi:http`. They are separate from [`imports`], because they are WASI's
/// interface and a plugin may use another client.
pub mod http {
    wit_bindgen::generate!({
        path: ["wit/wasi-http-0.2.12"],
        inline: "
            package hookrun:sdk-http;

            world http {
                import wasi:http/outgoing-handler@0.2.12;
            }
        ",
        world: "hookrun:sdk-http/http",
        generate_all,
        runtime_path: "::hookrun_sdk::__private::wit_bindgen::rt",
    });
}

pub mod post_build {
    wit_bindgen::generate!({
        path: ["wit/post-build-0.1.0"],
        inline: "
            package hookrun:sdk-post-build;

            world post-build-hook {
                export hookrun:post-build/post-build@0.1.0;
            }
        ",
        world: "hookrun:sdk-post-build/post-build-hook",
        generate_all,
        additional_derives: [PartialEq, serde::Serialize],
        pub_export_macro: true,
        export_macro_name: "export_post_build",
        default_bindings_module: "::hookrun_sdk::bindings::post_build",
        runtime_path: "::hookrun_sdk::__private::wit_bindgen::rt",
    });
}

pub mod diff {
    wit_bindgen::generate!({
        path: ["wit/diff-0.1.0"],
        inline: "
            package hookrun:sdk-diff;

            world diff-hook {
                export hookrun:diff/diff@0.1.0;
            }
        ",
        world: "hookrun:sdk-diff/diff-hook",
        generate_all,
        additional_derives: [PartialEq, serde::Serialize],
        pub_export_macro: true,
        export_macro_name: "export_diff",
        default_bindings_module: "::hookrun_sdk::bindings::diff",
        runtime_path: "::hookrun_sdk::__private::wit_bindgen::rt",
    });
}

pub mod builder_selection {
    wit_bindgen::generate!({
        path: ["wit/builder-selection-0.1.0"],
        inline: "
            package hookrun:sdk-builder-selection;

            world builder-selection-hook {
                export hookrun:builder-selection/builder-selection@0.1.0;
            }
        ",
        world: "hookrun:sdk-builder-selection/builder-selection-hook",
        generate_all,
        additional_derives: [PartialEq, Default, serde::Serialize],
        pub_export_macro: true,
        export_macro_name: "export_builder_selection",
        default_bindings_module: "::hookrun_sdk::bindings::builder_selection",
        runtime_path: "::hookrun_sdk::__private::wit_bindgen::rt",
    });
}
