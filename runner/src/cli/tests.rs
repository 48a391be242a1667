use super::*;

#[test]
fn the_command_line_is_well_formed() {
    help::command().debug_assert();
}

#[test]
fn the_help_of_every_command() {
    insta::assert_snapshot!(help::command().term_width(100).render_long_help());
}
