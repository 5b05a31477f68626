//! temporary
use tools::{compare::*, datadir::*};
fn main() -> anyhow::Result<()> {
    let a = DataDir::open(std::env::args().nth(1).unwrap().as_ref())?;
    let b = DataDir::open(std::env::args().nth(2).unwrap().as_ref())?;
    let s = source::DirectorySource::new(b)?;
    let r = compare(&a, &s, &Options { threads: 4, mismatches_max: 30, save_dir: Some("/tmp/inspect/save".into()) })?;
    println!("{r}");
    Ok(())
}
