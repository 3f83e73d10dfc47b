use super::*;

fn read(text: &str) -> Result<Value, NotYaml> {
    parse(text, &|text| Some(format!("binary {text}").into()))
}

fn json(text: &str) -> String {
    serde_json::to_string(&read(text).unwrap_or_else(|error| panic!("{text:?}: {error:?}"))).unwrap()
}

/// What is written, what it is, and where that is said: the sections and examples of <https://yaml.org/spec/1.2.2/>,
/// or the regular expressions of section 10.3.2, row by row.
#[test]
fn scalars_are_those_of_the_core_schema() {
    for (source, written, expected) in [
        ("10.3.2, null", "null", "null"),
        ("10.3.2, null", "Null", "null"),
        ("10.3.2, null", "NULL", "null"),
        ("10.3.2, null", "~", "null"),
        ("10.3.2, empty", "", "null"),
        ("10.3.2, bool", "true", "true"),
        ("10.3.2, bool", "True", "true"),
        ("10.3.2, bool", "TRUE", "true"),
        ("10.3.2, bool", "false", "false"),
        ("10.3.2, bool", "False", "false"),
        ("10.3.2, bool", "FALSE", "false"),
        ("10.3.2, int (base 10)", "0", "0"),
        ("10.3.2, int (base 10)", "-19", "-19"),
        ("10.3.2, int (base 10)", "+12", "12"),
        ("10.3.2, int (base 8)", "0o14", "12"),
        ("10.3.2, int (base 16)", "0xFF", "255"),
        ("example 2.19", "12345", "12345"),
        ("example 2.19", "+12345", "12345"),
        ("example 2.19", "0xC", "12"),
        ("10.3.2, float", "0.3", "0.3"),
        ("10.3.2, float", "-2.5", "-2.5"),
        ("64 bits and more", "18446744073709551616", "18446744073709551616"),
        // The rest: strings by the schema ...
        ("10.3.2, others", "nULL", "\"nULL\""),
        ("10.3.2, others", "tRUE", "\"tRUE\""),
        ("1.1 bool", "yes", "\"yes\""),
        ("1.1 bool", "No", "\"No\""),
        ("1.1 bool", "on", "\"on\""),
        ("1.1 bool", "OFF", "\"OFF\""),
        ("1.1 bool", "y", "\"y\""),
        ("1.1 int", "1_000", "\"1_000\""),
        ("1.1 int (base 2)", "0b11", "\"0b11\""),
        ("1.1 int (base 60)", "190:20:30", "\"190:20:30\""),
        ("1.1 timestamp", "2001-12-14", "\"2001-12-14\""),
        ("no sign", "-0x10", "\"-0x10\""),
        ("no digit", "0x", "\"0x\""),
        ("no digit", "0o8", "\"0o8\""),
        ("no number", "1.2.3", "\"1.2.3\""),
        ("no number", ".", "\".\""),
        ("no number", "-", "[null]"),
        ("no number", "e3", "\"e3\""),
        ("Rust's, not YAML's", "inf", "\"inf\""),
        ("Rust's, not YAML's", "NaN", "\"NaN\""),
        // ... numbers by the schema that other readers take for others, or that would print otherwise.
        ("octal by 1.1", "0755", "\"0755\""),
        ("float by kubectl", "012345678901", "\"012345678901\""),
        ("octal by 1.1", "-010", "\"-010\""),
        ("1.1", "1.10", "\"1.10\""),
        ("1000.0", "1e3", "\"1e3\""),
        ("1230.15", "1.23015e+3", "\"1.23015e+3\""),
        ("0.5", ".5", "\".5\""),
        ("2.0", "2.", "\"2.\""),
        ("infinite", ".inf", "\".inf\""),
        ("infinite", "-.Inf", "\"-.Inf\""),
        ("no number", ".NaN", "\".NaN\""),
        ("beyond 64 bits", "0xFFFFFFFFFFFFFFFFFF", "\"0xFFFFFFFFFFFFFFFFFF\""),
        ("too many digits", "3.14159265358979323846", "\"3.14159265358979323846\""),
    ] {
        assert_eq!(json(written), expected, "{written} ({source})");
        if expected.starts_with('"') {
            assert_eq!(read(written).unwrap().to_string(), written);
        }
    }
    for text in ["'1'", "\"true\"", "!!str 1", "! 1", "!local 1", "|-\n 1", ">-\n null"] {
        assert!(json(text).starts_with('"'), "{text}: {}", json(text));
    }
}

#[test]
fn tags_merges_and_aliases_are_read() {
    for (text, expected) in [
        ("[!!int 3, !!float 2.5, !!float 1e3, !!bool true, !!null ~]", "[3,2.5,\"1e3\",true,null]"),
        ("!!binary aGk=", "\"binary aGk=\""),
        ("!!map {a: !!seq [1]}", "{\"a\":[1]}"),
        ("[{1: a}, {true: b}]", "[{\"1\":\"a\"},{\"true\":\"b\"}]"),
        ("base: &b {x: 1, y: 2}\nover: {<<: *b, y: 3}", r#"{"base":{"x":1,"y":2},"over":{"x":1,"y":3}}"#),
        (
            "a: &a {x: 1}\nb: &b {x: 2, y: 2}\nc: {<<: [*a, *b], z: 3}",
            r#"{"a":{"x":1},"b":{"x":2,"y":2},"c":{"x":1,"y":2,"z":3}}"#,
        ),
        ("{'<<': 1}", "{\"<<\":1}"),
        ("%YAML 1.2\n---\na: 1\n...\n", "{\"a\":1}"),
        ("# nothing\n", "null"),
    ] {
        assert_eq!(json(text), expected, "{text}");
    }
    for text in [
        "a: 1\na: 2",
        "a: 1\n---\nb: 2",
        "a: &a [*a]",
        "<<: 1",
        "<<: [1]",
        "!!int x",
        "!!bool 1",
        "!!null x",
        "*no",
        "[",
        "a: b: c",
    ] {
        assert!(read(text).is_err(), "{text}: {:?}", read(text));
    }
    assert_eq!(read("a: 1\nb: 2\na: 3"), Err(NotYaml(3, 4)));
}

#[test]
fn a_byte_order_mark_begins_a_document_and_is_not_in_it() {
    for text in [
        "\u{feff}a: 1",
        "\u{feff}---\na: 1",
        "---\n\u{feff}a: 1",
        "# x\n\u{feff}---\na: 1",
        "\u{feff}# x\n---\n\u{feff}a: 1\n...\n\u{feff}",
    ] {
        assert_eq!(json(text), "{\"a\":1}", "{text:?}");
    }
    assert_eq!(json("a: \"\u{feff}b\""), "{\"a\":\"\u{feff}b\"}");
}

#[test]
fn nesting_and_aliases_are_bounded() {
    let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
    assert!(read(&nested(DEPTH)).is_ok());
    assert!(read(&nested(DEPTH + 1)).is_err());
    assert!(read(&"- ".repeat(DEPTH + 1)).is_err());
    // Aliases nest as well.
    let chain = |levels: usize| {
        (1..levels).fold("- &a0 [x]\n".to_owned(), |text, i| text + &format!("- &a{i} [*a{}]\n", i - 1))
    };
    assert!(read(&chain(DEPTH - 1)).is_ok());
    assert!(read(&chain(DEPTH + 1)).is_err());
    let level = |i: u32| format!("a{i}: &a{i} [{}]\n", vec![format!("*a{}", i - 1); 9].join(","));
    let bomb = (1..12).map(level).fold("a0: &a0 lol\n".to_owned(), |text, level| text + &level);
    assert!(read(&bomb).is_err());
    let long = format!("a: &a {}\nb: [{}]", "x".repeat(1 << 20), "*a, ".repeat(9));
    assert!(read(&long).is_err());
}
