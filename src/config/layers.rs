//! Flags, environment and file as the process got them, to be read again while it runs. The file's text is the only part
//! that changes; password files are read again with it.

use std::path::{Path, PathBuf};

use super::settings::{Digest, FILE_VARIABLE, Overrides, PREFIX, Settings, digest, read};
use super::{Config, ConfigError, memory, resolve};

/// No `Debug`: an upstream URL may hold a password.
#[derive(Clone, Default)]
pub(crate) struct Layers {
    overrides: Overrides,
    /// `NEARSIDE_*` only.
    env: Vec<(String, String)>,
}

/// What the layers came to, and which text of the file that was.
pub(crate) struct Loaded {
    pub(crate) result: Result<(Config, Vec<String>), ConfigError>,
    /// None: there is no file, or it could not be read.
    pub(crate) digest: Option<Digest>,
}

impl Layers {
    pub(crate) fn new(overrides: Overrides, env: impl Iterator<Item = (String, String)>) -> Layers {
        Layers { overrides, env: env.filter(|(name, _)| name.starts_with(PREFIX)).collect() }
    }

    pub(crate) fn load(&self) -> Loaded {
        let settings = self.settings(None);
        Loaded { digest: settings.digest, result: resolve(&settings, memory::limit(Path::new("/"))) }
    }

    /// The same with `text` in the file.
    pub(super) fn load_text(&self, text: &str) -> Result<Config, ConfigError> {
        resolve(&self.settings(Some(text)), memory::limit(Path::new("/"))).map(|(config, _)| config)
    }

    pub(super) fn settings(&self, text: Option<&str>) -> Settings {
        Settings::gather_with(&self.overrides, self.env.iter().cloned(), text)
    }

    /// Where the file is, if one was named.
    pub(crate) fn file(&self) -> Option<PathBuf> {
        let variable = || self.env.iter().find(|(name, text)| name == FILE_VARIABLE && !text.is_empty());
        let named = self.overrides.file.as_ref().or_else(|| variable().map(|(_, text)| text));
        named.map(PathBuf::from)
    }

    /// A pipe, as in `--config <(...)`, is empty the second time it is read, or never comes to an end.
    pub(crate) fn can_be_read_again(&self) -> Result<(), String> {
        let Some(path) = self.file() else { return Ok(()) };
        match std::fs::metadata(&path) {
            Ok(meta) if !meta.is_file() => {
                Err(format!("{} is no regular file, it cannot be read a second time", path.display()))
            }
            // Why it is not there is said by whoever reads it.
            Ok(_) | Err(_) => Ok(()),
        }
    }
}

/// What the file at `path` has now; an error while it cannot be read.
pub(crate) fn look(path: &Path) -> Result<Digest, String> {
    read(path).map(|bytes| digest(&bytes)).map_err(|e| e.to_string())
}
