//! The macro that exports a type as a plugin.

use std::marker::PhantomData;

use crate::bindings::{builder_selection, diff, post_build};
use crate::{BuilderSelection, Diff, PostBuild};

/// Exports the hooks of a type and writes the metadata section of the plugin.
///
/// ```
/// use hookrun_sdk::{Diff, Failure, Outcome, PostBuild, TaskOrder, Want, Wants, diff, post_build};
///
/// struct Both;
///
/// impl PostBuild for Both {
///     fn handle(event: post_build::Event) -> Result<Outcome, Failure> {
///         Ok(Outcome::new(event.name))
///     }
/// }
///
/// impl Diff for Both {
///     fn handle(event: diff::Event) -> Result<Outcome, Failure> {
///         Ok(Outcome::new(event.name))
///     }
/// }
///
/// hookrun_sdk::plugin! {
///     plugin: Both,
///     hooks: [PostBuild, Diff],
///     wants: Wants { state: Want::Optional, ..Wants::NOTHING },
///     order: TaskOrder::DependenciesFirst,
///     config_schema: r#"{ "type": "object", "additionalProperties": false }"#,
/// }
/// ```
///
/// `hooks` lists the traits of the type that are exported as hooks. The other keys are optional:
/// `wants` (default: [`Wants::NOTHING`](crate::Wants::NOTHING)), `order` (default:
/// [`TaskOrder::Any`](crate::TaskOrder::Any)) and `config_schema` (a JSON schema as a string;
/// default: any table is valid; a schema has at most 100 patterns, without recursion and without
/// `unevaluatedProperties` and `unevaluatedItems`). The keys may be in any order. Name, version and
/// description come from the crate's manifest. A component has one `plugin!`, with all its hooks.
#[macro_export]
macro_rules! plugin {
    ($($keys:tt)*) => {
        $crate::__plugin!([] [] [] [] [] $($keys)*);
    };
}

/// Sorts the keys of `plugin!` into five brackets: plugin, hooks, wants, order, config_schema.
#[doc(hidden)]
#[macro_export]
macro_rules! __plugin {
    (
        [$plugin:ty] [$($hook:ident)+] [$($wants:expr)?] [$($order:expr)?] [$($schema:expr)?]
    ) => {
        const _: () = {
            const METADATA: $crate::__private::Metadata = $crate::__private::Metadata {
                name: env!("CARGO_PKG_NAME"),
                version: env!("CARGO_PKG_VERSION"),
                description: env!("CARGO_PKG_DESCRIPTION"),
                hooks: &[$($crate::__hook_name!($hook)),+],
                wants: $crate::__or!([$($wants)?] $crate::Wants::NOTHING),
                order: $crate::__or!([$($order)?] $crate::TaskOrder::Any),
                config_schema: $crate::__or!([$($schema)?] ""),
            };

            #[cfg_attr(target_arch = "wasm32", unsafe(link_section = "hookrun:metadata"))]
            #[used]
            static SECTION: [u8; METADATA.json_length()] = METADATA.json();

            #[allow(dead_code, reason = "used by the exports, which only a component has")]
            type HookrunAdapter = $crate::__private::Adapter<$plugin>;

            $($crate::__export_hook!($hook, $plugin);)+
        };
    };
    ([] $hooks:tt $wants:tt $order:tt $schema:tt plugin: $plugin:ty $(, $($rest:tt)*)?) => {
        $crate::__plugin!([$plugin] $hooks $wants $order $schema $($($rest)*)?);
    };
    (
        $plugin:tt [] $wants:tt $order:tt $schema:tt
        hooks: [$($hook:ident),+ $(,)?] $(, $($rest:tt)*)?
    ) => {
        $crate::__plugin!($plugin [$($hook)+] $wants $order $schema $($($rest)*)?);
    };
    ($plugin:tt $hooks:tt [] $order:tt $schema:tt wants: $wants:expr $(, $($rest:tt)*)?) => {
        $crate::__plugin!($plugin $hooks [$wants] $order $schema $($($rest)*)?);
    };
    ($plugin:tt $hooks:tt $wants:tt [] $schema:tt order: $order:expr $(, $($rest:tt)*)?) => {
        $crate::__plugin!($plugin $hooks $wants [$order] $schema $($($rest)*)?);
    };
    ($plugin:tt $hooks:tt $wants:tt $order:tt [] config_schema: $schema:expr $(, $($rest:tt)*)?) => {
        $crate::__plugin!($plugin $hooks $wants $order [$schema] $($($rest)*)?);
    };
    ([] $hooks:tt $wants:tt $order:tt $schema:tt) => {
        compile_error!("`plugin: TYPE` is missing");
    };
    ($plugin:tt [] $wants:tt $order:tt $schema:tt) => {
        compile_error!("`hooks: [HOOK]` is missing; known: PostBuild, Diff, BuilderSelection");
    };
    ($plugin:tt $hooks:tt $wants:tt $order:tt $schema:tt $key:ident $($rest:tt)*) => {
        compile_error!(concat!(
            "unknown, repeated or malformed key `",
            stringify!($key),
            "`; write `plugin: TYPE`, `hooks: [HOOK]`, `wants: Wants { .. }`, `order: TaskOrder::..`, `config_schema: \"..\"`, \
             each once"
        ));
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __or {
    ([] $default:expr) => {
        $default
    };
    ([$value:expr] $default:expr) => {
        $value
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __hook_name {
    (PostBuild) => {
        "post-build"
    };
    (Diff) => {
        "diff"
    };
    (BuilderSelection) => {
        "builder-selection"
    };
    ($other:ident) => {
        compile_error!(concat!(
            "unknown hook `",
            stringify!($other),
            "`; known: PostBuild, Diff, BuilderSelection"
        ))
    };
}

// Exports exist only in a component, because an ELF linker would treat their names
// (`...@0.1.0#handle`) as versioned symbols.
#[doc(hidden)]
#[macro_export]
macro_rules! __export_hook {
    (PostBuild, $plugin:ty) => {
        const _: fn($crate::post_build::Event) -> Result<$crate::Outcome, $crate::Failure> = <$plugin as $crate::PostBuild>::handle;
        #[cfg(target_arch = "wasm32")]
        $crate::bindings::post_build::export_post_build!(HookrunAdapter with_types_in $crate::bindings::post_build);
    };
    (Diff, $plugin:ty) => {
        const _: fn($crate::diff::Event) -> Result<$crate::Outcome, $crate::Failure> = <$plugin as $crate::Diff>::handle;
        #[cfg(target_arch = "wasm32")]
        $crate::bindings::diff::export_diff!(HookrunAdapter with_types_in $crate::bindings::diff);
    };
    (BuilderSelection, $plugin:ty) => {
        const _: fn(
            $crate::builder_selection::Candidate,
            Vec<$crate::builder_selection::Machine>,
            $crate::builder_selection::LocalMachine,
        ) -> Result<$crate::builder_selection::Decision, String> = <$plugin as $crate::BuilderSelection>::select;
        #[cfg(target_arch = "wasm32")]
        $crate::bindings::builder_selection::export_builder_selection!(
            HookrunAdapter with_types_in $crate::bindings::builder_selection
        );
    };
    ($other:ident, $plugin:ty) => {};
}

/// Implements the traits of the bindings with those of the SDK.
#[doc(hidden)]
#[derive(Debug)]
pub struct Adapter<T>(PhantomData<T>);

impl<T: PostBuild> post_build::exports::hookrun::post_build::post_build::Guest for Adapter<T> {
    fn handle(
        event: crate::post_build::Event,
    ) -> Result<
        post_build::exports::hookrun::post_build::post_build::Outcome,
        post_build::exports::hookrun::post_build::post_build::Failure,
    > {
        T::handle(event).map(Into::into).map_err(Into::into)
    }
}

impl<T: Diff> diff::exports::hookrun::diff::diff::Guest for Adapter<T> {
    fn handle(
        event: crate::diff::Event,
    ) -> Result<
        diff::exports::hookrun::diff::diff::Outcome,
        diff::exports::hookrun::diff::diff::Failure,
    > {
        T::handle(event).map(Into::into).map_err(Into::into)
    }
}

impl<T: BuilderSelection>
    builder_selection::exports::hookrun::builder_selection::builder_selection::Guest
    for Adapter<T>
{
    fn select(
        candidate: crate::builder_selection::Candidate,
        machines: Vec<crate::builder_selection::Machine>,
        local: crate::builder_selection::LocalMachine,
    ) -> Result<
        builder_selection::exports::hookrun::builder_selection::builder_selection::Decision,
        String,
    > {
        T::select(candidate, machines, local).map(Into::into)
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_plugin_may_have_the_name_plugin() {
        use crate::{Failure, Outcome, PostBuild, post_build};

        struct Plugin;

        impl PostBuild for Plugin {
            fn handle(event: post_build::Event) -> Result<Outcome, Failure> {
                Ok(Outcome::new(event.name))
            }
        }

        crate::plugin! { plugin: Plugin, hooks: [PostBuild] }
    }

    #[test]
    fn keys_come_in_any_order() {
        use crate::{Failure, Outcome, PostBuild, TaskOrder, Wants, post_build};

        struct Any;

        impl PostBuild for Any {
            fn handle(event: post_build::Event) -> Result<Outcome, Failure> {
                Ok(Outcome::new(event.name))
            }
        }

        crate::plugin! {
            config_schema: "{}",
            order: TaskOrder::DependenciesFirst,
            wants: Wants::NOTHING,
            hooks: [PostBuild],
            plugin: Any
        }
    }
}
