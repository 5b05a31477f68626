//! Serves constant pages until killed: `constant_page_server 127.0.0.1:64900 60000`. For the ceiling of the load generator, with the
//! server's CPU time apart from the generator's.

use std::sync::Arc;

use anyhow::Context;
use benches::constant_pages::ConstantPages;
use pageserver::page_service::{PageService, PageServiceConfig};

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let listen = args.next().context("usage: constant_page_server ADDRESS:PORT BLOCKS")?.parse().context("address")?;
    let block_count =
        args.next().context("usage: constant_page_server ADDRESS:PORT BLOCKS")?.parse().context("blocks")?;
    let config = PageServiceConfig { listen, ..PageServiceConfig::default() };
    let service = PageService::start(config, Arc::new(ConstantPages::new(block_count))).context("listen")?;
    println!("{}", service.local_addr());
    loop {
        std::thread::park();
    }
}
