use bytes::Bytes;

use super::*;

/// Made by minisign 0.11: two keys, and signatures of the four bytes `test`.
pub const KEY: &str = "untrusted comment: minisign public key 506C2FD57F01BC1D\n\
                   RWQdvAF/1S9sUJAZsFyHz1DBSS6I7LcmGaMwVpkToFb58mRnDBdf5Yo8\n";
const OTHER: &str = "untrusted comment: minisign public key 368AD0F411DF65F5\n\
                     RWT1Zd8R9NCKNs1T0/Gf7azbVRjm8YFlfRb5KDoxCDn9kT6ER2zOYDD8\n";
pub const PREHASHED: &str = "untrusted comment: signature from minisign secret key\n\
    RUQdvAF/1S9sUMh4e0a7NpZ306rw5ZTUVAEAJpb9TC7VPh/wd7b+I5QMMBZ1Dq1zKKQ7q3ac6+E3f1pn6a7TCjj7KMWyow5X/g0=\n\
    trusted comment: timestamp:1796066738\tfile:test\thashed\n\
    lX8qe+knyxcmEZHBZMM43vx4H89mQnN/UoFAOFyGjMsGAZfZGWOuspsgl1Nga8dfQO28D9DyhYkiNvtwdV9eBQ==\n";
pub const BY_OTHER: &str = "untrusted comment: signature from minisign secret key\n\
    RUT1Zd8R9NCKNqexMjcCwl/KBCTqTqnNqfCMmrDKPRtzSFkZcof5k6UZTq7rnvICSYrXKdpUdh3za3Z6TP2x2MAGuOLJ0BfeCwQ=\n\
    trusted comment: timestamp:1796066738\tfile:test\thashed\n\
    otLVm6aaC1B4EbYFA+UqYE+i3DmT2CEwTdQr2q4UmSSHWbHCHigcre1moW8JMsQxzzP6UbeWYk+myNwDsLeOAw==\n";
const LEGACY: &str = "untrusted comment: signature from minisign secret key\n\
    RWQdvAF/1S9sUDfnirZpgcSYTIzVCKm0lWVRrMM+DhoZpYynQ82qv5wHfolc39/IafaaSBylqYRA39PGs16hQLttUC+Fe8BMZwI=\n\
    trusted comment: timestamp:1796066738\tfile:test\n\
    zYfRXbotXQErY1stMFNZa0vp9Q+nn5D57/N51l9FxO57fQ1NgcvU5SuV/o+I5JBnIqPI9FOpWFjAcTU+i+9CDQ==\n";

fn of(content: &str) -> Content {
    Bytes::copy_from_slice(content.as_bytes()).into()
}

/// Verifies by a file of keys with this text.
fn verify(keys: &str, content: &str, signature: &str) -> Result<(), SignatureError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys");
    std::fs::write(&path, keys).unwrap();
    let what = "https://host/web.tar?token=canary".parse().unwrap();
    Signed::by(path, &what).unwrap().verify(&of(content), signature.as_bytes())
}

#[test]
fn signature_is_verified_in_both_forms_and_by_any_key_of_the_file() {
    let both = format!("{OTHER}\n{KEY}").replace('\n', "\r\n");
    let bare = KEY.lines().nth(1).unwrap();
    for (keys, signature) in
        [(KEY, PREHASHED), (KEY, LEGACY), (bare, PREHASHED), (&both, LEGACY), (&both, BY_OTHER), (OTHER, BY_OTHER)]
    {
        assert_eq!(verify(keys, "test", signature), Ok(()), "{keys}");
    }
}

#[test]
fn another_content_key_or_comment_is_refused() {
    let altered = PREHASHED.replace("1796066738", "1796066739");
    for (content, signature) in [("tesT", PREHASHED), ("", LEGACY), ("test", &altered)] {
        let error = verify(KEY, content, signature).unwrap_err();
        assert!(matches!(error, SignatureError::Mismatch { .. }) && error.may_be_of_two_versions(), "{error}");
        assert!(error.to_string().contains("https://host/web.tar.minisig") && !error.to_string().contains("canary"));
    }
    let error = verify(KEY, "test", BY_OTHER).unwrap_err().to_string();
    assert!(
        error.contains("signed with the key 368AD0F411DF65F5") && error.contains("only 506C2FD57F01BC1D"),
        "{error}"
    );
    // A key that calls itself another's.
    let number = STANDARD.decode(OTHER.lines().nth(1).unwrap()).unwrap();
    let mut forged = STANDARD.decode(KEY.lines().nth(1).unwrap()).unwrap();
    forged[2..10].copy_from_slice(&number[2..10]);
    let error = verify(&STANDARD.encode(forged), "test", BY_OTHER).unwrap_err();
    assert!(matches!(error, SignatureError::Mismatch { .. }), "{error}");
}

#[test]
fn files_that_are_none_are_refused_without_being_quoted() {
    let cut = &PREHASHED[..PREHASHED.len() - 20];
    for signature in ["", "<html>canary</html>", "a\nb\nc\nd\n", cut, KEY] {
        let error = verify(KEY, "test", signature).unwrap_err();
        assert_eq!(
            error,
            SignatureError::Unreadable { at: "https://host/web.tar.minisig?…".to_owned() },
            "{signature}"
        );
        assert!(!error.may_be_of_two_versions());
    }
    let secret = "untrusted comment: minisign encrypted secret key\nRWQAAEIyAAAAAAAAAAAAAAAAAAAAAAAAcanary\n";
    for (keys, words) in [
        ("", "holds no public key"),
        ("untrusted comment: x\n\n", "holds no public key"),
        (secret, "line 2 is no public key"),
        (PREHASHED, "line 2 is no public key"),
    ] {
        let error = verify(keys, "test", PREHASHED).unwrap_err().to_string();
        assert!(error.contains(words) && !error.contains("canary"), "{error}");
    }
    let gone = Signed::by("/no/keys".into(), &"http://host/a".parse().unwrap()).unwrap();
    let error = gone.verify(&of("test"), PREHASHED.as_bytes()).unwrap_err().to_string();
    assert!(error.starts_with("--url-key /no/keys: ") && error.contains("unverified"), "{error}");
}
