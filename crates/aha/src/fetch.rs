//! From what a user calls a model to a download of it.

use crate::error::Result;
use aha_hub::{Downloader, FileFilter, HubConfig, ModelId, Source, Store};
use aha_models::releases::{self, Release};

/// A downloader for the model that `name` means, a hub id or an alias, and the id to hand it. What
/// the table of releases knows is set: the ids on both hubs, and the files that the family needs.
///
/// ```no_run
/// # fn main() -> aha::Result<()> {
/// use aha::hub::{HubConfig, Store};
/// let config = HubConfig::from_env()?;
/// let store = Store::open(None, &config)?;
/// let (downloader, id) = aha::downloader("qwen3-0.6b", &store, &config)?;
/// downloader.download(&id)?;
/// let model = aha::load("qwen3-0.6b").build()?;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`crate::Error::Hub`] when the name is neither an alias nor `owner/name`.
pub fn downloader(name: &str, store: &Store, config: &HubConfig) -> Result<(Downloader, ModelId)> {
    let release = releases::find(name);
    let id: ModelId = release.map_or(name, |release| release.id).parse()?;
    let mut downloader = Downloader::new(store, config);
    if let Some(release) = release {
        downloader = downloader
            .hub_id(Source::ModelScope, release.modelscope.parse()?)
            .filter(files_of(release)?);
    }
    Ok((downloader, id))
}

/// The files that a release's family needs.
///
/// # Errors
/// None in practice: the table's patterns are constants.
pub fn files_of(release: &Release) -> Result<FileFilter> {
    Ok(FileFilter::common_and(release.files)?.without(release.unneeded)?)
}
