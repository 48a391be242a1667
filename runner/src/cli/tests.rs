use clap::CommandFactory;

use super::*;

#[test]
fn the_command_line_is_well_formed() {
    Cli::command().debug_assert();
}

#[test]
fn help() {
    insta::assert_snapshot!(Cli::command().term_width(100).render_long_help());
}
