//! `PEX-INFO`: by which hash a pex unpacks itself, and which shared parts it needs.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{self, BufReader, Read as _};

use hostkit::dir::Dir;
use serde::Deserialize;

/// A `PEX-INFO` larger than this is not one (bytes): it has a line for each distribution.
const LIMIT: u64 = 4 << 20;
/// The name of the file, in a pex and in what it unpacks.
pub(super) const NAME: &str = "PEX-INFO";

/// What matters of it here.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct PexInfo {
    /// The name of the directories that the pex unpacks to.
    pub(super) pex_hash: Option<String>,
    bootstrap_hash: Option<String>,
    code_hash: Option<String>,
    distributions: BTreeMap<String, String>,
}

impl PexInfo {
    /// Reads that of a pex file.
    pub(super) fn of_pex(file: &File) -> io::Result<Self> {
        let reader = BufReader::new(file.try_clone()?);
        let mut archive = zip::ZipArchive::new(reader).map_err(io::Error::other)?;
        let at = archive
            .index_for_name(NAME)
            .ok_or(io::ErrorKind::NotFound)?;
        // The zip crate is built without decompression; PEX-INFO is stored or deflated.
        let entry = archive.by_index_raw(at).map_err(io::Error::other)?;
        let stored = entry.compressed_size() == entry.size();
        let mut bytes = Vec::new();
        if stored {
            entry.take(LIMIT).read_to_end(&mut bytes)?;
        } else {
            let inflated = flate2::read::DeflateDecoder::new(entry);
            inflated.take(LIMIT).read_to_end(&mut bytes)?;
        }
        Ok(serde_json::from_slice(&bytes)?)
    }

    /// Reads that of a directory a pex has unpacked to.
    pub(super) fn of_directory(dir: &Dir) -> io::Result<Self> {
        Ok(serde_json::from_slice(&dir.read(NAME, LIMIT)?)?)
    }

    /// The names of the parts it shares with other pexes.
    pub(super) fn parts(self) -> HashSet<String> {
        let hashes = [self.bootstrap_hash, self.code_hash];
        let named = hashes.into_iter().flatten();
        named.chain(self.distributions.into_values()).collect()
    }
}
