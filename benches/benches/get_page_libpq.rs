//! GetPage over libpq against an 8 KiB echo over the same kind of socket, in the same run: the ratio is what the protocol costs.
//!
//! - `latency`: one request in flight. `pipelined`: 32 requests in flight, answered by the page service as one batch.
//! - The echo server answers each 47-byte request with as many bytes as a GetPage response has, from one buffer: no parsing, no copy.
//! - `page_service/constant` finds its pages for nothing: the protocol's own ceiling.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;

use benches::constant_pages::{ConstantPages, REL};
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use pageserver::page_service::backend::RepositoryBackend;
use pageserver::page_service::pagestream::wire::{
    Body, GET_PAGE_REQUEST_LEN_V3, GET_PAGE_RESPONSE_HEAD_LEN_V3, Header, Request, Version,
};
use pageserver::page_service::{PageService, PageServiceConfig};
use postgres_ffi::{BLCKSZ, ForkNumber, Lsn};

const REQUEST_LEN: usize = 5 + GET_PAGE_REQUEST_LEN_V3;
const RESPONSE_LEN: usize = 5 + GET_PAGE_RESPONSE_HEAD_LEN_V3 + BLCKSZ;
/// One hot page, as in the latency figures that we compare with.
const HOT_BLOCK: u32 = 7;
const DEPTHS: [usize; 2] = [1, 32];

/// Answers every request with the same bytes, all that have arrived with one write.
fn start_echo() -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            stream.set_nodelay(true).expect("sets");
            std::thread::spawn(move || {
                let answers = vec![7; RESPONSE_LEN * 64];
                let (mut requests, mut pending) = (vec![0; REQUEST_LEN * 64], 0);
                loop {
                    match stream.read(&mut requests) {
                        Ok(0) | Err(_) => return,
                        Ok(read) => pending += read,
                    }
                    let whole = pending / REQUEST_LEN;
                    pending %= REQUEST_LEN;
                    if stream.write_all(&answers[..whole * RESPONSE_LEN]).is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("connects");
    stream.set_nodelay(true).expect("sets");
    stream
}

/// A socket on which a page stream of `main` has started.
fn start_stream(address: SocketAddr) -> TcpStream {
    let mut stream = connect(address);
    stream.write_all(b"\0\0\0\x14\0\x03\0\0user\0bench\0\0").expect("writes");
    read_past(&mut stream, b"Z\0\0\0\x05I");
    stream.write_all(b"Q\0\0\0\x17pagestream_v3 main\0").expect("writes");
    read_past(&mut stream, b"W\0\0\0\x07\0\0\0");
    stream
}

fn read_past(stream: &mut TcpStream, end: &[u8]) {
    let mut seen = Vec::new();
    let mut byte = [0];
    while !seen.ends_with(end) {
        stream.read_exact(&mut byte).expect("reads");
        seen.push(byte[0]);
    }
}

fn requests(depth: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for i in 0..depth {
        let header = Header { request_id: i as u64, request_lsn: Lsn::MAX, not_modified_since: Lsn::ZERO };
        let body = Body::get_page(REL, ForkNumber::Main, HOT_BLOCK);
        Request { header, body }.encode_frame(Version::V3, &mut out);
    }
    assert!(out.len() == depth * REQUEST_LEN);
    out
}

/// Sends `depth` requests at once and reads all answers, per iteration. Both peers get the same bytes from the same client code.
fn bench_peer(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, mut stream: TcpStream) {
    for depth in DEPTHS {
        let requests = requests(depth);
        let mut answers = vec![0; depth * RESPONSE_LEN];
        group.throughput(Throughput::Elements(depth as u64));
        group.bench_function(BenchmarkId::new(name, depth), |bencher| {
            bencher.iter(|| {
                stream.write_all(&requests).expect("writes");
                stream.read_exact(&mut answers).expect("reads");
            });
        });
    }
}

fn get_page_libpq(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("get_page_libpq");
    bench_peer(&mut group, "echo_8k", connect(start_echo()));
    let backends: [(&str, Arc<dyn RepositoryBackend>); 1] =
        [("page_service/constant", Arc::new(ConstantPages::new(64)))];
    for (name, backend) in backends {
        let config = PageServiceConfig { listen: ([127, 0, 0, 1], 0).into(), ..PageServiceConfig::default() };
        let service = PageService::start(config, backend).expect("a free port");
        bench_peer(&mut group, name, start_stream(service.local_addr()));
        service.shutdown();
    }
    group.finish();
}

criterion_group!(benches, get_page_libpq);
criterion_main!(benches);
