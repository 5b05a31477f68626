//! Goal: a server that sends nonsense, too much or nothing costs an error and nothing else.
//! Method: a listener that logs us in as PostgreSQL would and then misbehaves, in fixed ways and with random bytes.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::Result;
use pageserver::replication::{BackupOptions, Connection, Mode, ReplicationError, Started, WalEvent};
use postgres_ffi::Lsn;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// One message: type, length, body.
fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![tag];
    bytes.extend((body.len() as u32 + 4).to_be_bytes());
    bytes.extend(body);
    bytes
}

/// A login without a password, version 15, ready.
fn login() -> Vec<u8> {
    let mut bytes = message(b'R', &[0, 0, 0, 0]);
    bytes.extend(message(b'S', b"server_version\x0015.18 (of sorts)\0"));
    bytes.extend(message(b'K', &[0; 8]));
    bytes.extend(message(b'Z', b"I"));
    bytes
}

/// Answers the startup message with `first`, and the next message with `second`; closes after that, or stays silent.
fn serve(first: Vec<u8>, second: Vec<u8>, stay: bool) -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    std::thread::spawn(move || -> std::io::Result<()> {
        let (mut socket, _) = listener.accept()?;
        // Whoever is tested may hang up at any moment.
        for answer in [first, second] {
            let mut ignored = [0; 4096];
            let closed = socket.read(&mut ignored)? == 0;
            if closed || (answer.is_empty() && !stay) {
                return Ok(());
            }
            socket.write_all(&answer)?;
        }
        if stay {
            wait_for_close(&mut socket)?;
        }
        Ok(())
    });
    Ok(port)
}

fn wait_for_close(socket: &mut TcpStream) -> std::io::Result<()> {
    let mut ignored = [0; 4096];
    while socket.read(&mut ignored)? > 0 {}
    Ok(())
}

/// With time for an answer.
fn connect(port: u16) -> Result<Connection, ReplicationError> {
    connect_within(port, 60)
}

fn connect_within(port: u16, seconds: u32) -> Result<Connection, ReplicationError> {
    let conninfo = format!("host=127.0.0.1 port={port} user=u sslmode=disable connect_timeout={seconds}");
    Connection::connect(&conninfo.parse()?, Mode::Replication)
}

#[test]
fn logins_that_go_wrong_are_errors() -> Result<()> {
    let check = |answer: Vec<u8>, expect: &str| -> Result<()> {
        let error = connect(serve(answer.clone(), vec![], false)?).err();
        let text = format!("{error:?}");
        assert!(text.contains(expect), "{answer:?}: {text}");
        Ok(())
    };
    check(vec![], "Closed")?;
    check(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(), "FrameTooLong")?;
    check(vec![b'R', 0xFF, 0xFF, 0xFF, 0xFF], "FrameTooLong")?;
    check(vec![b'R', 0, 0, 0, 3], "Protocol")?;
    check(message(b'R', &[]), "Protocol")?;
    check(message(b'R', &[0, 0, 0, 7]), "AuthenticationMethod")?;
    check(message(b'R', &[0, 0, 0, 5, 1]), "Protocol")?;
    check(message(b'R', &[0, 0, 0, 10, b'X', 0, 0]), "AuthenticationMethod")?;
    check(message(b'R', b"\0\0\0\x0aSCRAM-SHA-256"), "Protocol")?;
    check(message(b'E', b"SFATAL\0C28000\0Mno\0"), "28000")?;
    check(message(b'D', &[]), "Protocol")?;
    let mut wrong_version = message(b'R', &[0, 0, 0, 0]);
    wrong_version.extend(message(b'S', b"server_version\x009.6.1\0"));
    wrong_version.extend(message(b'Z', b"I"));
    check(wrong_version, "Version")?;
    let mut endless = message(b'R', &[0, 0, 0, 0]);
    for index in 0..1000 {
        endless.extend(message(b'S', format!("p{index}\0x\0").as_bytes()));
    }
    check(endless, "too many parameters")?;
    Ok(())
}

#[test]
fn a_silent_server_costs_the_connect_timeout() -> Result<()> {
    let started = Instant::now();
    let silent = connect_within(serve(vec![], vec![], true)?, 1);
    assert!(matches!(silent, Err(ReplicationError::Timeout { .. })));
    assert!(started.elapsed() < Duration::from_secs(60));
    Ok(())
}

/// Sends `first` to whoever has said something, then `drip` again and again, ten times a second.
fn serve_for_ever(first: Vec<u8>, drip: Vec<u8>) -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    std::thread::spawn(move || -> std::io::Result<()> {
        let (mut socket, _) = listener.accept()?;
        let mut ignored = [0; 4096];
        let _ = socket.read(&mut ignored)?;
        socket.write_all(&first)?;
        // Until nobody listens any more.
        loop {
            socket.write_all(&drip)?;
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    Ok(port)
}

#[test]
fn a_server_that_never_ends_a_login_or_an_answer_costs_its_time() -> Result<()> {
    let notice = message(b'N', b"SNOTICE\0C00000\0Mwait a little\0\0");
    let logged_in = message(b'R', &[0, 0, 0, 0]);
    let mut long_message = logged_in.clone();
    long_message.extend([b'S', 0, 0, 0x40, 0]);
    for (first, drip) in [(logged_in, notice.clone()), (long_message, vec![b'x'])] {
        let endless = connect_within(serve_for_ever(first, drip)?, 1);
        assert!(matches!(endless, Err(ReplicationError::Timeout { timeout }) if timeout == Duration::from_secs(1)));
    }
    let mut connection = connect_within(serve_for_ever(login(), notice)?, 5)?;
    let started = Instant::now();
    let endless = connection.identify_system();
    assert!(matches!(endless, Err(ReplicationError::Timeout { timeout }) if timeout <= started.elapsed()));
    Ok(())
}

#[test]
fn random_bytes_at_any_place_never_panic() -> Result<()> {
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(42);
    println!("SEED={seed}");
    let mut rng = SmallRng::seed_from_u64(seed);
    for round in 0..400 {
        // Frames that look right around noise, or noise alone.
        let mut noise = Vec::new();
        for _ in 0..rng.random_range(1..20) {
            let mut body = vec![0; rng.random_range(0..200)];
            rng.fill(&mut body[..]);
            let tags = b"TDCZdWcHENSR";
            match rng.random_range(0..8) {
                0 => noise.extend(&body),
                1 if !body.is_empty() => {
                    body[0] = b"wkndpm"[rng.random_range(0..6)];
                    noise.extend(message(b'd', &body));
                }
                _ => noise.extend(message(tags[rng.random_range(0..tags.len())], &body)),
            }
        }
        match round % 5 {
            0 => drop(connect_within(serve(noise, vec![], false)?, 1)), // Half a login may be all that comes.
            1 => drop(connect(serve(login(), noise, false)?)?.identify_system()),
            2 => drop(connect(serve(login(), noise, false)?)?.read_slot("slot")),
            3 => {
                let connection = connect(serve(login(), noise, false)?)?;
                if let Ok(mut backup) = connection.base_backup(&BackupOptions::default()) {
                    while let Ok(Some(_)) = backup.next_archive() {
                        let mut bytes = Vec::new();
                        if backup.reader().read_to_end(&mut bytes).is_err() {
                            break;
                        }
                    }
                }
            }
            _ => {
                let mut answer = message(b'W', &[0, 0, 0]);
                answer.extend(noise);
                let connection = connect(serve(login(), answer, false)?)?;
                if let Ok(Started::Streaming(mut stream)) = connection.start_replication(None, Lsn::new(1 << 24), 1) {
                    while let Ok(event) = stream.next(Duration::from_millis(200)) {
                        if matches!(event, WalEvent::Idle | WalEvent::TimelineEnd { .. }) {
                            break;
                        }
                    }
                }
            }
        }
    }
    Ok(())
}
