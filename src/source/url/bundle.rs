//! Bundles: the files of a tar archive, held to what keys may be. Nothing is unpacked to where it has a name.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io::{self, BufReader, Read};

use bytes::Bytes;
use flate2::read::MultiGzDecoder;
use tar::{Archive, EntryType};

use crate::model::content::Content;
use crate::model::spool::{Spool, SpoolError};
use crate::model::stretch::LARGE;

/// The most files of one bundle.
const MOST: usize = 10_000;
/// What an archive may have beside its files' names and contents: headers, and what fills blocks up.
const FRAME: u64 = (MOST as u64) * 2048;
/// How many links may lead to one another.
const LINKS: usize = 8;
/// The zeros that an archive ends with (POSIX, pax: two blocks).
const END: usize = 1024;

/// How an archive is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    Plain,
    Gzip,
}

impl Packing {
    /// Of what is called so; `None`: it is no bundle.
    #[must_use]
    pub fn of(name: &str) -> Option<Self> {
        let (rest, last) = name.rsplit_once('.')?;
        match last.to_ascii_lowercase().as_str() {
            "tar" => Some(Self::Plain),
            "tgz" => Some(Self::Gzip),
            "gz" if Self::of(rest) == Some(Self::Plain) => Some(Self::Gzip),
            _ => None,
        }
    }
}

/// Why a bundle is not used. Nothing of it is.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    #[error("it is no {} archive, or breaks off ({reason}); an error page in its place? Upload it again", if *packed { "tar.gz" } else { "tar" })]
    Broken { packed: bool, reason: String },
    #[error("the end of the archive is missing; upload it again, whole")]
    NoEnd,
    #[error(
        "it unpacks to more than {limit} bytes; raise --max-size (and give the volume of --output room), or make it smaller"
    )]
    TooLarge { limit: u64 },
    #[error("it has more than {MOST} files; make several bundles of it")]
    TooMany,
    #[error("the name of a file in it is not UTF-8; rename it")]
    Name,
    #[error("{path:?} is absolute or has a '..'; pack it from within its directory, as tar -C DIR .")]
    Outside { path: String },
    #[error(
        "{path:?} is a link to {target:?}, which leads out of the bundle or to no file in it; pack the file itself (tar -h)"
    )]
    Link { path: String, target: String },
    #[error("{path:?} is neither a file, a directory nor a link; leave it out")]
    Special { path: String },
    #[error("{path:?} is in it twice; leave one of them out")]
    Twice { path: String },
    /// The archive is not at fault.
    #[error("{0}")]
    NotKept(SpoolError),
}

/// The files of an archive, by their paths. `limit`: what names and contents may have together, links' contents among
/// them, in bytes. `spool`: where contents are kept, if not in memory.
pub fn unpack(
    archive: impl Read,
    packing: Packing,
    limit: u64,
    spool: Option<&Spool>,
) -> Result<BTreeMap<String, Content>, BundleError> {
    // An archive is read in blocks of 512 bytes.
    let archive = BufReader::with_capacity(64 << 10, archive);
    let (packed, reader): (bool, Box<dyn Read + '_>) = match packing {
        Packing::Plain => (false, Box::new(archive)),
        Packing::Gzip => (true, Box::new(MultiGzDecoder::new(archive))),
    };
    let mut archive = Archive::new(Bounded { reader, left: limit.saturating_add(FRAME), exceeded: false, zeros: 0 });
    let mut found = Found { spool, limit, left: limit, ..Found::default() };
    let read = found.read(&mut archive);
    let mut rest = archive.into_inner();
    // What follows the end belongs to it, and the checksum of gzip with it.
    let read = read.and_then(|()| io::copy(&mut rest, &mut io::sink()).map(drop).map_err(Stop::Io));
    match read {
        _ if rest.exceeded => Err(BundleError::TooLarge { limit }),
        Err(Stop::Refused(error)) => Err(error),
        Err(Stop::Io(error)) => Err(BundleError::Broken { packed, reason: in_words(&error) }),
        Ok(()) if rest.zeros < END => Err(BundleError::NoEnd),
        Ok(()) => found.linked(),
    }
}

/// The libraries' texts quote names of files, which may be anything.
fn in_words(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => "its end is missing",
        io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData => "what is there makes no sense",
        _ => "it cannot be read",
    }
    .to_owned()
}

/// A reader with an end, that knows how many zeros it has read last.
struct Bounded<R> {
    reader: R,
    left: u64,
    exceeded: bool,
    zeros: usize,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(buffer)?;
        let Some(left) = self.left.checked_sub(read as u64) else {
            self.exceeded = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        };
        self.left = left;
        let zeros = buffer[..read].iter().rev().take_while(|byte| **byte == 0).count();
        self.zeros = if zeros == read { self.zeros.saturating_add(zeros) } else { zeros };
        Ok(read)
    }
}

enum Stop {
    Io(io::Error),
    Refused(BundleError),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<BundleError> for Stop {
    fn from(error: BundleError) -> Self {
        Self::Refused(error)
    }
}

#[derive(Default)]
struct Found<'a> {
    spool: Option<&'a Spool>,
    files: BTreeMap<String, Content>,
    /// The path of each link, and of what it leads to.
    links: BTreeMap<String, String>,
    limit: u64,
    left: u64,
}

impl Found<'_> {
    fn read<R: Read>(&mut self, archive: &mut Archive<R>) -> Result<(), Stop> {
        for entry in archive.entries()? {
            let mut entry = entry?;
            let kind = entry.header().entry_type();
            if kind == EntryType::XGlobalHeader {
                continue;
            }
            let shown = text(&entry.path_bytes())?;
            let Some(path) = inside("", &shown) else { return Err(BundleError::Outside { path: shown }.into()) };
            match kind {
                EntryType::Directory => {}
                _ if path.is_empty() => return Err(BundleError::Outside { path: shown }.into()),
                EntryType::Regular | EntryType::Continuous => {
                    self.take(path.len() as u64)?;
                    let size = entry.size();
                    self.take(size)?;
                    let content = self.content(&mut entry, size)?;
                    self.add(&path)?;
                    self.files.insert(path, content);
                }
                EntryType::Symlink | EntryType::Link => {
                    let target = entry.link_name_bytes().map(|target| text(&target)).transpose()?.unwrap_or_default();
                    // A hard link's is a path from the top, a symbolic link's from where it stands.
                    let folder =
                        if kind == EntryType::Link { "" } else { path.rsplit_once('/').map_or("", |(up, _)| up) };
                    let Some(to) = inside(folder, &target).filter(|_| !target.starts_with('/')) else {
                        return Err(BundleError::Link { path, target }.into());
                    };
                    self.take((path.len() + to.len()) as u64)?;
                    self.add(&path)?;
                    self.links.insert(path, to);
                }
                _ => return Err(BundleError::Special { path }.into()),
            }
        }
        Ok(())
    }

    /// Exactly so many bytes of a reader.
    fn content(&self, reader: &mut impl Read, size: u64) -> Result<Content, Stop> {
        let mut rest = reader.take(size);
        let kept = |error| Stop::Refused(BundleError::NotKept(error));
        let content: Content = match self.spool {
            Some(spool) if size > LARGE => {
                let mut writing = spool.begin(size);
                let mut piece = vec![0; 128 << 10];
                loop {
                    match rest.read(&mut piece) {
                        Ok(0) => break writing.end().into(),
                        Ok(read) => writing.add(&piece[..read]).map_err(kept)?,
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                        Err(error) => return Err(error.into()),
                    }
                }
            }
            spool => {
                let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
                rest.read_to_end(&mut bytes)?;
                let bytes = Bytes::from(bytes.into_boxed_slice());
                match spool {
                    Some(spool) => Content::keep(bytes, spool).map_err(kept)?,
                    None => bytes.into(),
                }
            }
        };
        if content.len() as u64 == size {
            Ok(content)
        } else {
            Err(io::Error::from(io::ErrorKind::UnexpectedEof).into())
        }
    }

    fn take(&mut self, bytes: u64) -> Result<(), BundleError> {
        self.left = self.left.checked_sub(bytes).ok_or(BundleError::TooLarge { limit: self.limit })?;
        Ok(())
    }

    fn add(&self, path: &str) -> Result<(), BundleError> {
        if self.files.contains_key(path) || self.links.contains_key(path) {
            return Err(BundleError::Twice { path: path.to_owned() });
        }
        if self.files.len() + self.links.len() >= MOST { Err(BundleError::TooMany) } else { Ok(()) }
    }

    /// With what links lead to: shared, and a file for each link where it is published.
    fn linked(self) -> Result<BTreeMap<String, Content>, BundleError> {
        let Self { mut files, links, limit, mut left, .. } = self;
        let mut followed = Vec::new();
        for (path, target) in &links {
            let mut to = target;
            for _ in 0..LINKS {
                to = links.get(to).unwrap_or(to);
            }
            let Some(content) = files.get(to) else {
                return Err(BundleError::Link { path: path.clone(), target: target.clone() });
            };
            left = left.checked_sub(content.len() as u64).ok_or(BundleError::TooLarge { limit })?;
            followed.push((path.clone(), content.clone()));
        }
        files.extend(followed);
        Ok(files)
    }
}

fn text(bytes: &[u8]) -> Result<String, BundleError> {
    String::from_utf8(bytes.to_owned()).map_err(|_| BundleError::Name)
}

/// Where a path leads from a folder, both from the top of the bundle; `None`: out of it.
fn inside(folder: &str, path: &str) -> Option<String> {
    if path.starts_with('/') {
        return None;
    }
    let mut segments: Vec<&str> = folder.split('/').filter(|segment| !segment.is_empty()).collect();
    // What a file is called has no way up at all: some programs would go it before they see where it ends.
    let climbs = !folder.is_empty();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." if climbs => _ = segments.pop()?,
            ".." => return None,
            segment => segments.push(segment),
        }
    }
    Some(segments.join("/"))
}
