//! A superblock as text, one field a line, in the words of `docs/format.md` 1.

use super::{Role, Superblock};
use std::fmt;
use uuid::Uuid;

impl fmt::Display for Superblock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.role() {
            Role::Cache => "cache device",
            Role::Backing => "backing device",
        };
        writeln!(f, "version       {} ({kind})", self.version)?;
        writeln!(f, "uuid          {}", Uuid::from_bytes(self.uuid))?;
        writeln!(f, "set_uuid      {}", Uuid::from_bytes(self.set_uuid))?;
        writeln!(f, "label         {:?}", self.label())?;
        writeln!(f, "flags         {:#x}", self.flags)?;
        writeln!(f, "seq           {}", self.seq)?;
        writeln!(f, "block_size    {}", self.block_size)?;
        writeln!(f, "last_mount    {}", self.last_mount)?;
        match self.role() {
            Role::Cache => self.print_cache(f),
            Role::Backing => self.print_backing(f),
        }
    }
}

impl Superblock {
    fn print_cache(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "sync          {}", self.is_sync())?;
        writeln!(f, "discard       {}", self.discard())?;
        match self.replacement() {
            Some(replacement) => writeln!(f, "replacement   {replacement}")?,
            None => writeln!(f, "replacement   invalid ({})", self.replacement_raw())?,
        }
        if self.version == 5 {
            writeln!(f, "feature_compat    {:#x}", self.feature_compat)?;
            writeln!(f, "feature_incompat  {:#x}", self.feature_incompat)?;
            writeln!(f, "feature_ro_compat {:#x}", self.feature_ro_compat)?;
        }
        writeln!(f, "nbuckets      {}", self.nbuckets)?;
        writeln!(f, "bucket_size   {}", self.bucket_sectors())?;
        writeln!(f, "nr_in_set     {}", self.nr_in_set)?;
        writeln!(f, "nr_this_dev   {}", self.nr_this_dev)?;
        writeln!(f, "first_bucket  {}", self.first_bucket)?;
        write!(f, "njournal      {}", self.journal.len())
    }

    fn print_backing(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.cache_mode() {
            Some(mode) => writeln!(f, "cache mode    {mode}")?,
            None => writeln!(f, "cache mode    invalid ({})", self.cache_mode_raw())?,
        }
        writeln!(f, "state         {}", self.state())?;
        write!(f, "data_offset   {}", self.data_start())
    }
}
