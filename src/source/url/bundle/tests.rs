use std::io::Write as _;

use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::prelude::*;
use tar::{Builder, Header};

use super::*;

const LIMIT: u64 = 1 << 20;

/// One entry: what it is called, what it is, where it leads, what it holds.
type Entry<'a> = (&'a str, EntryType, &'a str, &'a [u8]);

fn file<'a>(path: &'a str, content: &'a str) -> Entry<'a> {
    (path, EntryType::Regular, "", content.as_bytes())
}

/// An archive of any entries, also such as no honest program writes.
fn tar(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (path, kind, link, content) in entries {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(*kind);
        header.set_size(content.len() as u64);
        header.set_cksum();
        builder.append(&header, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
    packed.write_all(bytes).unwrap();
    packed.finish().unwrap()
}

fn unpack(bytes: &[u8], packing: Packing, limit: u64) -> Result<BTreeMap<String, Bytes>, BundleError> {
    let files = super::unpack(bytes, packing, limit, None)?;
    let spool = Spool::new(tempfile::tempfile().unwrap());
    assert_eq!(super::unpack(bytes, packing, limit, Some(&spool)).as_ref(), Ok(&files));
    Ok(files.into_iter().map(|(path, content)| (path, content.read().unwrap())).collect())
}

fn keys(entries: &[Entry<'_>]) -> Result<Vec<String>, BundleError> {
    let files = unpack(&tar(entries), Packing::Plain, LIMIT)?;
    Ok(files.into_iter().map(|(path, content)| format!("{path}={}", String::from_utf8_lossy(&content))).collect())
}

/// A small archive must not become many large files.
#[test]
fn links_count_with_what_they_lead_to() {
    let content = "x".repeat(1000);
    let names: Vec<_> = (0..9).map(|number| format!("link-{number}")).collect();
    let links = names.iter().map(|name| (name.as_str(), EntryType::Symlink, "a", &b""[..]));
    let archive = tar(&[file("a", &content)].into_iter().chain(links).collect::<Vec<_>>());
    assert_eq!(unpack(&archive, Packing::Plain, 20_000).unwrap().len(), 10);
    assert_eq!(unpack(&archive, Packing::Plain, 9000), Err(BundleError::TooLarge { limit: 9000 }));
}

#[test]
fn keys_are_the_files_by_their_paths() {
    let entries = [
        ("./", EntryType::Directory, "", &b""[..]),
        file("./a.conf", "1"),
        ("sites/", EntryType::Directory, "", b""),
        file("sites/b.conf", "2"),
        ("sites/up", EntryType::Symlink, "../a.conf", b""),
        ("over", EntryType::Symlink, "sites/up", b""),
        ("same", EntryType::Link, "sites/b.conf", b""),
        ("pax", EntryType::XGlobalHeader, "", b"13 comment=x\n"),
    ];
    assert_eq!(keys(&entries).unwrap(), ["a.conf=1", "over=1", "same=2", "sites/b.conf=2", "sites/up=1"]);
    let packed = unpack(&gzip(&tar(&entries)), Packing::Gzip, LIMIT).unwrap();
    assert_eq!(packed, unpack(&tar(&entries), Packing::Plain, LIMIT).unwrap());
    assert_eq!(keys(&[]).unwrap(), [""; 0]);
    for (name, packing) in [
        ("a.tar", Some(Packing::Plain)),
        ("a.TAR.gz", Some(Packing::Gzip)),
        ("a.tgz", Some(Packing::Gzip)),
        ("a.gz", None),
    ] {
        assert_eq!(Packing::of(name), packing, "{name}");
    }
}

#[test]
fn nothing_leads_out_of_a_bundle() {
    for path in ["/etc/passwd", "../up", "a/../../up", "a/../b", "..", "", "."] {
        let error = keys(&[file(path, "x")]).unwrap_err();
        assert!(matches!(error, BundleError::Outside { .. }), "{path}: {error:?}");
    }
    let error = keys(&[("../up", EntryType::Directory, "", b"")]).unwrap_err();
    assert!(matches!(error, BundleError::Outside { .. }), "{error:?}");
    for kind in [EntryType::Symlink, EntryType::Link] {
        for target in ["/etc/passwd", "../../x", "../x", "none", "", "l"] {
            let error = keys(&[file("x", "1"), ("l", kind, target, b"")]).unwrap_err();
            assert!(matches!(error, BundleError::Link { .. }), "{target}: {error:?}");
        }
    }
    let circle = [("a", EntryType::Symlink, "b", &b""[..]), ("b", EntryType::Symlink, "a", b"")];
    assert!(matches!(keys(&circle).unwrap_err(), BundleError::Link { .. }));
}

#[test]
fn what_is_no_key_is_refused() {
    for kind in [EntryType::Char, EntryType::Block, EntryType::Fifo, EntryType::GNUSparse, EntryType::new(b'Z')] {
        let error = keys(&[("x", kind, "", b"")]).unwrap_err();
        assert!(!matches!(error, BundleError::NoEnd | BundleError::TooLarge { .. }), "{kind:?}: {error:?}");
    }
    for second in ["a", "./a", "a/"] {
        let error = keys(&[file("a", "1"), file(second, "2")]).unwrap_err();
        assert_eq!(error, BundleError::Twice { path: "a".to_owned() }, "{second}");
    }
    let link = ("a", EntryType::Link, "b", &b""[..]);
    assert!(matches!(keys(&[file("b", "1"), link, link]).unwrap_err(), BundleError::Twice { .. }));
}

#[test]
fn bundles_have_an_end_to_their_size() {
    let paths: Vec<_> = (0..=MOST).map(|number| format!("{number}")).collect();
    let entries: Vec<_> = paths.iter().map(|path| file(path, "")).collect();
    assert_eq!(keys(&entries), Err(BundleError::TooMany));
    assert_eq!(keys(&entries[1..]).unwrap().len(), MOST);
    let large = tar(&[file("a", "0123456789")]);
    assert!(unpack(&large, Packing::Plain, 11).is_ok());
    assert_eq!(unpack(&large, Packing::Plain, 10), Err(BundleError::TooLarge { limit: 10 }));
    // A hundredth of what it unpacks to, none of it a file.
    let bomb = gzip(&vec![0; 24 << 20]);
    assert_eq!(unpack(&bomb, Packing::Gzip, 10), Err(BundleError::TooLarge { limit: 10 }));
    // A header that promises more than there is costs no memory.
    let mut header = Header::new_gnu();
    header.set_path("a").unwrap();
    header.set_size(1 << 40);
    header.set_cksum();
    assert_eq!(unpack(header.as_bytes(), Packing::Plain, LIMIT), Err(BundleError::TooLarge { limit: LIMIT }));
}

#[test]
fn large_files_are_kept_in_the_spool_and_small_ones_beside_them() {
    let large = "some lines of one length\n".repeat(100_000);
    let archive = gzip(&tar(&[file("large", &large), file("small", "1"), ("link", EntryType::Symlink, "large", b"")]));
    let spool = Spool::new(tempfile::tempfile().unwrap());
    let files = super::unpack(&*archive, Packing::Gzip, 64 << 20, Some(&spool)).unwrap();
    for (key, content) in [("large", large.as_str()), ("link", &large), ("small", "1")] {
        assert!(files[key].read().unwrap() == content.as_bytes(), "{key}");
    }
    let broken = super::unpack(&archive[..archive.len() / 2], Packing::Gzip, 64 << 20, Some(&spool));
    assert!(matches!(broken, Err(BundleError::Broken { .. })), "{broken:?}");
    // A disk that is full is no fault of the archive.
    let file = tempfile::NamedTempFile::new().unwrap();
    let full = Spool::new(std::fs::File::open(file.path()).unwrap());
    let error = super::unpack(&*archive, Packing::Gzip, 64 << 20, Some(&full)).unwrap_err();
    assert!(matches!(error, BundleError::NotKept(_)), "{error}");
}

#[test]
fn part_of_an_archive_is_no_archive() {
    let whole = tar(&[file("a", "1"), file("b", &"2".repeat(1000))]);
    let packed = gzip(&whole);
    for cut in [0, 1, 511, 512, 1024, 1500, 1536, 2000, 2560, 3000] {
        let error = unpack(&whole[..cut], Packing::Plain, LIMIT).unwrap_err();
        assert!(matches!(error, BundleError::NoEnd | BundleError::Broken { .. }), "{cut}: {error:?}");
    }
    for cut in 0..packed.len() {
        assert!(unpack(&packed[..cut], Packing::Gzip, LIMIT).is_err(), "{cut} of {}", packed.len());
    }
    let page = b"<html>502 Bad Gateway</html>".repeat(100);
    for packing in [Packing::Plain, Packing::Gzip] {
        let error = unpack(&page, packing, LIMIT).unwrap_err();
        assert!(matches!(error, BundleError::Broken { .. }) && !error.to_string().contains("html"), "{error}");
    }
}

proptest! {
    #[test]
    fn what_is_packed_is_what_comes_out(files in proptest::collection::btree_map("[a-z]{1,8}(/[a-z]{1,8}){0,3}", proptest::collection::vec(any::<u8>(), 0..600), 0..8)) {
        let entries: Vec<_> = files.iter().map(|(path, content)| (path.as_str(), EntryType::Regular, "", &content[..])).collect();
        let unpacked = unpack(&gzip(&tar(&entries)), Packing::Gzip, LIMIT).unwrap();
        prop_assert!(unpacked.iter().map(|(path, content)| (path, &content[..])).eq(files.iter().map(|(path, content)| (path, &content[..]))));
    }

    #[test]
    fn no_archive_leads_out_or_panics(at in 0usize..2048, bytes in proptest::collection::vec(any::<u8>(), 1..64), path in "(\\.{0,3}/?){0,6}[a-z]?") {
        let mut archive = tar(&[file(&path, "1"), ("l", EntryType::Symlink, "a", b""), file("a", "2")]);
        let end = (at + bytes.len()).min(archive.len());
        archive[at..end].copy_from_slice(&bytes[..end - at]);
        if let Ok(files) = unpack(&archive, Packing::Plain, LIMIT) {
            for path in files.keys() {
                prop_assert!(!path.starts_with('/') && path.split('/').all(|segment| !["", ".", ".."].contains(&segment)), "{path:?}");
            }
        }
    }
}
