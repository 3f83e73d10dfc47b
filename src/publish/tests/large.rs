//! Files that were left where they are until they are copied.

use std::os::unix::fs::FileExt;

use super::faulty::{self, Change};
use super::*;
use crate::model::content::Content;
use crate::model::spool::{Spool, SpoolError};
use crate::model::stretch::{LARGE, Stretch};

/// One that is copied by hand, and one that the kernel copies.
const LENGTHS: [usize; 2] = [300_000, 1_100_001];
const _: () = assert!(LENGTHS[0] as u64 <= LARGE && LENGTHS[1] as u64 > LARGE);

fn tree_with(content: Content) -> Tree {
    let mut tree = tree([("small", "1")]);
    let large = File { bytes: content, secret: false, origin: "key \"large\" of dir/in".into() };
    tree.insert(TreePath::parse("large").unwrap(), large).unwrap();
    tree
}

/// A file of somebody else's, and the tree that has it.
fn found(bytes: &[u8], below: &Path) -> (fs::File, Tree) {
    let file = tempfile::tempfile_in(below).unwrap();
    file.write_all_at(bytes, 0).unwrap();
    let content = Stretch::of(file.try_clone().unwrap(), |_| Ok(()), |errno| errno).unwrap().into();
    (file, tree_with(content))
}

/// Bytes of which no two stretches are the same.
fn value(seed: usize, length: usize) -> Vec<u8> {
    (seed..).flat_map(usize::to_le_bytes).take(length).collect()
}

#[test]
fn a_file_that_was_changed_since_its_digest_was_taken_is_never_published() {
    for (layout, length) in LAYOUTS.into_iter().flat_map(|layout| LENGTHS.map(|length| (layout, length))) {
        let dir = scratch();
        let output = open_as(dir.path(), layout);
        let (file, tree) = found(&vec![b'a'; length], dir.path());
        publish(&output, &generation(1), &tree);
        assert!(fs::read(dir.path().join("large")).unwrap() == vec![b'a'; length]);

        let (other, tree) = found(&vec![b'b'; length], dir.path());
        other.write_all_at(b"x", length as u64 - 1).unwrap();
        let error = output.stage(&generation(2), &tree).unwrap_err();
        assert!(matches!(error, PublishError::Source { error: SpoolError::Changed, .. }), "{error}");
        assert!(error.to_string().starts_with("key \"large\" of dir/in: it was changed"), "{error}");
        assert!(!error.rejected() && error.is_of_the_inputs());
        let candidate = output.candidate(&generation(2));
        assert!(!candidate.exists());
        other.set_len(length as u64 - 1).unwrap();
        let error = output.stage(&generation(2), &tree).unwrap_err();
        assert!(matches!(error, PublishError::Source { error: SpoolError::Changed, .. }), "{error}");
        // What is published is a copy.
        file.write_all_at(b"x", 0).unwrap();
        assert!(fs::read(dir.path().join("large")).unwrap() == vec![b'a'; length]);
    }
}

/// What `publish` writes of a large file, and in how large pieces at most.
fn largest_write(publish: impl FnOnce()) -> usize {
    faulty::record();
    publish();
    let wrote = faulty::recorded().into_iter();
    wrote
        .filter_map(|change| if let Change::Wrote { bytes, .. } = change { Some(bytes.len()) } else { None })
        .max()
        .unwrap()
}

#[test]
fn a_kernel_copies_what_is_large_and_what_it_refuses_to_copy_is_written() {
    let large = LENGTHS[1];
    let dir = scratch();
    let output = open_as(dir.path(), Layout::Atomic);
    let spool = Spool::new(tempfile::tempfile_in(dir.path()).unwrap());
    // So that it does not begin where its file does.
    let _before = spool.store(&value(7, 5000)).unwrap();
    let refusals = [Errno::EXDEV, Errno::EINVAL, Errno::EOPNOTSUPP, Errno::ENOSYS, Errno::EPERM, Errno::EIO];
    let refusals = refusals.into_iter().flat_map(|errno| [0, 1, large - 1].map(|copied| Some((copied, errno))));
    for (sequence, refused) in (1..).zip(std::iter::once(None).chain(refusals)) {
        let bytes = value(sequence, large);
        let kept = Content::from(spool.store(&bytes).unwrap());
        let (_file, left) = found(&bytes, dir.path());
        for (turn, tree) in [tree_with(kept), left].iter().enumerate() {
            faulty::refuse_copies(refused);
            let generation = generation((2 * sequence + turn) as u64);
            let largest = largest_write(|| publish(&output, &generation, tree));
            faulty::refuse_copies(None);
            assert!(fs::read(dir.path().join("large")).unwrap() == bytes, "{refused:?}");
            if refused.is_none() {
                assert!(largest > 128 << 10, "it was written in pieces of {largest} bytes");
            }
        }
    }
}

#[test]
fn a_spool_that_ends_early_publishes_nothing() {
    let large = LENGTHS[1];
    let dir = scratch();
    let output = open_as(dir.path(), Layout::Atomic);
    publish(&output, &generation(1), &tree([("small", "1")]));
    let file = tempfile::tempfile_in(dir.path()).unwrap();
    let spool = Spool::new(file.try_clone().unwrap());
    let kept = spool.store(&value(1, large)).unwrap();
    let tree = tree_with(kept.into());
    let before = listing(dir.path());
    file.set_len(large as u64 - 1).unwrap();
    let error = output.stage(&generation(2), &tree).unwrap_err();
    assert!(!error.rejected() && error.to_string().contains("cannot be read again"), "{error}");
    assert_eq!(listing(dir.path()), before);
}

#[test]
fn what_a_program_has_changed_in_a_large_file_of_the_candidate_is_seen() {
    for length in LENGTHS {
        let dir = scratch();
        let output = open_as(dir.path(), Layout::Atomic);
        let (_file, tree) = found(&vec![b'a'; length], dir.path());
        output.stage_whole(&generation(1), &tree).unwrap();
        assert!(output.is_intact(&generation(1), &tree).unwrap());
        let staged = fs::File::options().write(true).open(output.candidate(&generation(1)).join("large")).unwrap();
        staged.write_all_at(b"x", length as u64 - 1).unwrap();
        assert!(!output.is_intact(&generation(1), &tree).unwrap());
        staged.set_len(length as u64 + 1).unwrap();
        assert!(!output.is_intact(&generation(1), &tree).unwrap());
    }
}
