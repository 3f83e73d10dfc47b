//! Any bytes in the place of a bundle are unpacked within bounds, to paths that lead nowhere else, or refused.
//!
//! The first byte says whether they are packed by gzip (odd) or not.
#![no_main]

use libfuzzer_sys::fuzz_target;
use trimtab::source::url::{Packing, unpack_bundle};

const LIMIT: u64 = 64 * 1024;
const BLOCK: usize = 512;

/// Headers whose checksum fits, which chance never hits (POSIX: the sum of the header's bytes, those of the sum as blanks).
fn summed(archive: &[u8]) -> Vec<u8> {
    let mut archive = archive.to_vec();
    for block in archive.chunks_exact_mut(BLOCK).filter(|block| block[257..].starts_with(b"ustar")) {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    }
    archive
}

fuzz_target!(|data: &[u8]| {
    let Some((&first, archive)) = data.split_first() else { return };
    let (packing, archive) =
        if first % 2 == 1 { (Packing::Gzip, archive.to_vec()) } else { (Packing::Plain, summed(archive)) };
    match unpack_bundle(&archive[..], packing, LIMIT, None) {
        Ok(files) => {
            let size: usize = files.iter().map(|(path, content)| path.len() + content.len()).sum();
            assert!(size as u64 <= LIMIT && files.len() <= 10_000, "{size} bytes in {} files", files.len());
            for path in files.keys() {
                assert!(!path.split('/').any(|segment| matches!(segment, "" | "." | "..")), "{path:?}");
            }
        }
        Err(error) => assert!(!error.to_string().contains(char::is_control), "{error:?}"),
    }
});
