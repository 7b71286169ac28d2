//! docs/operators.md is what the table of the importer says.

#[path = "../examples/operators.rs"]
mod operators;

#[test]
fn the_page_of_operators_is_up_to_date() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/operators.md");
    let page = std::fs::read_to_string(path).expect("the page is there");
    assert_eq!(page, operators::page(), "write it with the command at the head of examples/operators.rs");
}
