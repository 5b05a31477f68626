//! What a pass removes, by class of object.

use std::collections::BTreeMap;
use std::ops::AddAssign;

use keyenc::Object;
use postgres_ffi::BLCKSZ;

use super::decision::{KEY_BYTES, Version};

/// What goes, or would go, of one class of objects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RemovedOfClass {
    /// Versions that go.
    pub versions: u64,
    /// What they take with their keys, before compression.
    pub bytes: u64,
    /// Pages that are made in place of chains.
    pub images: u64,
    /// What those take.
    pub image_bytes: u64,
}

impl AddAssign for RemovedOfClass {
    fn add_assign(&mut self, other: Self) {
        self.versions += other.versions;
        self.bytes += other.bytes;
        self.images += other.images;
        self.image_bytes += other.image_bytes;
    }
}

/// What a pass did, or would do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GcCounts {
    /// By the name of the class.
    pub removed: BTreeMap<&'static str, RemovedOfClass>,
    /// Versions that were looked at, with keys and values.
    pub walked_bytes: u64,
    /// Chains that stay because no page could be made of them.
    pub images_failed: u64,
    /// What went into files.
    pub written_bytes: u64,
    /// What compaction wrote meanwhile.
    pub compacted_bytes: u64,
}

impl GcCounts {
    /// Of all classes.
    pub fn total(&self) -> RemovedOfClass {
        let mut total = RemovedOfClass::default();
        self.removed.values().for_each(|removed| total += *removed);
        total
    }

    pub(super) fn count_removed(&mut self, class: &'static str, version: &Version) {
        let removed = self.removed.entry(class).or_default();
        removed.versions += 1;
        removed.bytes += version.bytes();
    }

    pub(super) fn count_image(&mut self, class: &'static str) {
        let removed = self.removed.entry(class).or_default();
        removed.images += 1;
        removed.image_bytes += KEY_BYTES + BLCKSZ as u64;
    }

    /// Adds what another pass, or part of one, did.
    pub fn add(&mut self, other: &GcCounts) {
        for (class, removed) in &other.removed {
            *self.removed.entry(class).or_default() += *removed;
        }
        self.walked_bytes += other.walked_bytes;
        self.images_failed += other.images_failed;
        self.written_bytes += other.written_bytes;
        self.compacted_bytes += other.compacted_bytes;
    }
}

/// The name of an object's class.
pub(super) fn class_name(object: &Object) -> &'static str {
    match object {
        Object::Watermark => "watermark",
        Object::ControlFile => "control_file",
        Object::Checkpoint => "checkpoint",
        Object::CommitTime => "commit_time",
        Object::Database { .. } => "database",
        Object::RelationMap { .. } => "relation_map",
        Object::DatabaseSize { .. } => "database_size",
        Object::RelationSize { .. } => "relation_size",
        Object::SlruSegment { .. } => "slru_segment",
        Object::SlruPage { .. } => "slru_page",
        Object::SlruSize { .. } => "slru_size",
        Object::TwoPhase { .. } => "two_phase",
        Object::ReplicationOrigin { .. } => "replication_origin",
        Object::RelationBlock { .. } => "relation_block",
    }
}
