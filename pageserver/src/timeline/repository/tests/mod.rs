//! Branches in a real repository on disk, without a server: what is written is made up, and goes through the store as ingest puts it.

mod backup_proof;
mod base_backup;
mod collecting;
mod crashes;
mod damaged;
mod leases;
mod model;
mod readers;
mod rig;
mod sizes;
mod tenants;
mod verifying;
