//! `PEX-INFO`: the hash that names the directories of an unpacked pex, and the shared parts it needs.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{self, BufReader, Read as _};

use hostkit::dir::Dir;
use serde::Deserialize;

/// The size limit of `PEX-INFO` (bytes): it has a line for each distribution.
const LIMIT: u64 = 4 << 20;
pub(super) const NAME: &str = "PEX-INFO";

/// The fields of `PEX-INFO` that are used here.
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
    /// Reads `PEX-INFO` from a pex file.
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

    /// Reads `PEX-INFO` from an unpacked pex.
    pub(super) fn of_directory(dir: &Dir) -> io::Result<Self> {
        Ok(serde_json::from_slice(&dir.read(NAME, LIMIT)?)?)
    }

    /// The names of the shared parts.
    pub(super) fn parts(self) -> HashSet<String> {
        let hashes = [self.bootstrap_hash, self.code_hash];
        let named = hashes.into_iter().flatten();
        named.chain(self.distributions.into_values()).collect()
    }
}
