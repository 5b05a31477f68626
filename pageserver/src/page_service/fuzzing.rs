//! The functions that fuzz targets (`pageserver/fuzz/`) and short property tests share: bytes in, no panic out, and what parses must
//! come back the same.

use super::command::PageAddress;
use super::command::parse;
use super::frame::FrameReader;
use super::frontend::FrontendMessage;
use super::pagestream::wire::{Request, Response, Version};
use super::startup;

/// A stream of frames after startup, with page stream requests and responses inside.
pub fn frames(bytes: &[u8]) {
    let mut reader = FrameReader::new(4096);
    let mut source = bytes;
    loop {
        loop {
            match reader.next_frame() {
                Ok(Some(frame)) => message(frame.tag, reader.payload(&frame)),
                Ok(None) => break,
                Err(_) => return,
            }
        }
        match reader.fill(&mut source) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
    }
}

fn message(tag: u8, payload: &[u8]) {
    if let Ok(FrontendMessage::CopyData(data)) = FrontendMessage::parse(tag, payload) {
        page_stream(data);
    }
}

/// One message of a page stream, either direction, both versions.
pub fn page_stream(data: &[u8]) {
    for version in [Version::V2, Version::V3] {
        if let Ok(request) = Request::parse(version, data) {
            let mut encoded = Vec::new();
            request.encode(version, &mut encoded);
            assert!(encoded == data);
        }
        let _ = Response::parse(version, data);
    }
}

/// What a connection begins with.
pub fn startup_packet(bytes: &[u8]) {
    if let Ok(Some(len)) = startup::packet_len(bytes)
        && let Some(packet) = bytes.get(..len)
    {
        let _ = startup::parse(packet);
    }
}

/// A command's text.
pub fn command(text: &str) {
    if let Ok(commands) = parse::parse(text) {
        for command in commands {
            let _ = command.columns();
        }
    }
    if let Ok(address) = text.parse::<PageAddress>() {
        assert!(address.to_string().parse() == Ok(address));
    }
}
