//! Files that were left where they are until they are copied.

use std::os::unix::fs::FileExt;

use super::*;
use crate::model::content::Content;
use crate::model::spool::SpoolError;
use crate::model::stretch::Stretch;

const LENGTH: usize = 300_000;

/// A file of somebody else's, and the tree that has it.
fn found(bytes: &[u8]) -> (fs::File, Tree) {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(bytes, 0).unwrap();
    let content: Content = Stretch::of(file.try_clone().unwrap(), |_| Ok(()), |errno| errno).unwrap().into();
    let mut tree = tree([("small", "1")]);
    let large = File { bytes: content, secret: false, origin: "key \"large\" of dir/in".into() };
    tree.insert(TreePath::parse("large").unwrap(), large).unwrap();
    (file, tree)
}

#[test]
fn a_file_that_was_changed_since_its_digest_was_taken_is_never_published() {
    for layout in LAYOUTS {
        let dir = scratch();
        let output = open_as(dir.path(), layout);
        let (file, tree) = found(&vec![b'a'; LENGTH]);
        publish(&output, &generation(1), &tree);
        assert!(fs::read(dir.path().join("large")).unwrap() == vec![b'a'; LENGTH]);

        let (other, tree) = found(&vec![b'b'; LENGTH]);
        other.write_all_at(b"x", LENGTH as u64 - 1).unwrap();
        let error = output.stage(&generation(2), &tree).unwrap_err();
        assert!(matches!(error, PublishError::Source { error: SpoolError::Changed, .. }), "{error}");
        assert!(error.to_string().starts_with("key \"large\" of dir/in: it was changed"), "{error}");
        assert!(!error.rejected() && error.is_of_the_inputs());
        let candidate = output.candidate(&generation(2));
        assert!(!candidate.exists());
        // What is published is a copy.
        file.write_all_at(b"x", 0).unwrap();
        assert!(fs::read(dir.path().join("large")).unwrap() == vec![b'a'; LENGTH]);
    }
}

#[test]
fn what_a_program_has_changed_in_a_large_file_of_the_candidate_is_seen() {
    let dir = scratch();
    let output = open_as(dir.path(), Layout::Atomic);
    let (_file, tree) = found(&vec![b'a'; LENGTH]);
    output.stage_whole(&generation(1), &tree).unwrap();
    assert!(output.is_intact(&generation(1), &tree).unwrap());
    let staged = fs::File::options().write(true).open(output.candidate(&generation(1)).join("large")).unwrap();
    staged.write_all_at(b"x", LENGTH as u64 - 1).unwrap();
    assert!(!output.is_intact(&generation(1), &tree).unwrap());
    staged.set_len(LENGTH as u64 + 1).unwrap();
    assert!(!output.is_intact(&generation(1), &tree).unwrap());
}
