use proptest::prelude::*;

use super::*;

const CANARY: &str = "hunter2-canary";

fn parse(name: &str, text: impl AsRef<[u8]>) -> Result<(), SyntaxError> {
    syntax(&TreePath::parse(name).unwrap(), text.as_ref())
}

#[test]
fn what_is_well_formed_passes() {
    for (name, text) in [
        ("a.json", r#"{"a": [1, 2.5, null, true, "\ud800"], "a": {}}"#),
        ("a.yaml", ""),
        ("a.toml", ""),
        ("a.yml", "\u{feff}a: 1\n"),
        ("a.yaml", "a: 1\n---\n\u{feff}b: 2\n\u{feff}---\nc: 3\n...\n\u{feff}d: 4\n"),
        ("a.toml", "\u{feff}a = 1\n"),
        ("a.YAML", "a: 1\n---\nb: 2\n...\n---\n- 3\n"),
        ("a.yaml", "Key: !Sub\n- !Ref x\n- !GetAtt a.b\n- !<tag:x> {y: z}\n- !!binary aGk=\n"),
        ("a.yaml", "base: &b {x: 1}\nover: {<<: *b, y: 2}\n"),
        ("a.yaml", "%YAML 1.2\n%TAG !e! tag:example.com,2000:\n---\n!e!x y\n"),
        ("a.toml", "[a]\nb = 1979-05-27T07:32:00Z\n[[c]]\nd = 'e'\n"),
        ("dir.json/a", "{"),
        ("json", "{"),
        ("a.conf", "{"),
    ] {
        assert_eq!(parse(name, text), Ok(()), "{name}: {text}");
    }
    assert_eq!(parse("a.bin", b"\xff"), Ok(()));
}

#[test]
fn what_is_malformed_is_reported_with_its_place_and_without_its_text() {
    for (name, text, place) in [
        ("x/a.json", "{\n  \"CANARY\": CANARY\n}", "x/a.json, line 2, column 21: not JSON"),
        ("a.json", "", "line 1, column 0"),
        ("a.json", "\u{feff}{}", "a.json begins with a byte order mark (U+FEFF), which JSON does not allow"),
        ("a.json", "{} {}", "line 1, column 4"),
        ("a.yaml", "a: CANARY\nb: [ CANARY\n", "a.yaml, line 2, column 4: not YAML"),
        ("a.yaml", "a: 1\n---\nb: *CANARY\n", "line 3"),
        ("a.yaml", "a: !CANARY!x y\n", "line 1"),
        ("a.yaml", "key: CANARY\n  key: CANARY\n", "line 2"),
        ("a.toml", "a = 1\na = 'CANARY'\n", "line 2, column 1: not TOML"),
        ("a.toml", "ü = CANARY\n", "line 1"),
    ] {
        let message = parse(name, text.replace("CANARY", CANARY)).unwrap_err().to_string();
        assert!(message.contains(place) && message.contains("--syntax warn"), "{text:?}: {message}");
        assert!(!message.contains("canary"), "{message}");
    }
    for name in ["a.json", "a.yaml", "a.toml"] {
        let message = parse(name, b"x: 1\n\xc3\xa9\xff").unwrap_err().to_string();
        assert!(message.contains("line 2, column 2: not UTF-8"), "{message}");
    }
}

#[test]
fn nesting_size_and_aliases_are_bounded() {
    // Tokio's blocking threads have as much stack.
    let on_a_small_stack = || {
        let deep = 200_000;
        assert_eq!(parse("a.json", "[".repeat(deep) + &"]".repeat(deep)), Ok(()));
        assert!(parse("a.json", "{\"a\":".repeat(deep)).is_err());
        assert!(parse("a.yaml", "[".repeat(deep) + &"]".repeat(deep)).is_err());
        assert!(parse("a.yaml", "- ".repeat(deep)).is_err());
        assert!(parse("a.yaml", "{a: ".repeat(deep)).is_err());
        assert!(parse("a.toml", "a = ".to_owned() + &"[".repeat(deep) + &"]".repeat(deep)).is_err());
        assert!(parse("a.toml", "[a".to_owned() + &".a".repeat(deep) + "]").is_err());
        assert_eq!(parse("a.yaml", "[".repeat(100) + &"]".repeat(100)), Ok(()));
    };
    std::thread::Builder::new().stack_size(2 << 20).spawn(on_a_small_stack).unwrap().join().unwrap();
    let level = |i: u32| format!("a{i}: &a{i} [{}]\n", vec![format!("*a{}", i - 1); 9].join(","));
    let bomb = (1..30).map(level).fold("a0: &a0 lol\n".to_owned(), |text, level| text + &level);
    assert_eq!(parse("bomb.yaml", bomb), Ok(()));
    let scalar = "x".repeat(8 << 20);
    assert_eq!(parse("a.json", format!("\"{scalar}\"")), Ok(()));
    assert_eq!(parse("a.yaml", format!("a: {scalar}")), Ok(()));
    let message = parse("a.toml", format!("a = '{scalar}'")).unwrap_err().to_string();
    assert!(message.contains("larger than 4194304 bytes"), "{message}");
}

fn fragments() -> impl Strategy<Value = String> {
    let tokens = [
        CANARY,
        "{",
        "}",
        "[",
        "]",
        ": ",
        ",",
        "\"",
        "'",
        "\n",
        "\n  ",
        "- ",
        "&a ",
        "*a",
        "!t ",
        "!!str ",
        "---\n",
        "...\n",
        "=",
        "#",
        "\t",
        "|\n",
        ">\n",
        "\\",
        "\\u12",
        "%TAG ! x\n",
        "<<",
        "? ",
        "1e9",
        "1979-05-27",
        "'''",
        "\"\"\"",
        "\u{feff}",
        "\0",
        "é",
    ];
    proptest::collection::vec(proptest::sample::select(tokens.to_vec()), 0..40).prop_map(|tokens| tokens.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(3000) })]

    #[test]
    fn any_text_is_parsed_or_refused_and_never_shown(text in fragments(), bytes: Vec<u8>) {
        for name in ["a.json", "a.yaml", "a.toml"] {
            if let Err(error) = parse(name, &text) {
                prop_assert!(!format!("{error} {error:?}").contains("canary"), "{error:?}");
            }
            let _ = parse(name, &bytes);
        }
    }
}

#[test]
fn what_begins_as_gzip_files_do_is_known_by_what_was_read() {
    for (bytes, begins_so) in [(&b"\x1f\x8b\x08\x00"[..], true), (b"\x1f\x8b\x09\x00", false), (b"\xff", false)] {
        let found = parse("a.yaml", bytes);
        assert!(matches!(found, Err(SyntaxError::NotUtf8 { packed, .. }) if packed == begins_so), "{found:?}");
    }
}
