//! The end that counts.

use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::ServerOptions;
use super::protocol::{Answer, Control, Request, VERSION};
use crate::machine::busy_seconds;
use crate::traffic::udp;

/// The most streams of one measurement.
const MOST_STREAMS: u32 = 64;

/// How long a stream that was announced may take to come, or stay silent.
const PATIENCE: Duration = Duration::from_secs(10);

/// Listens and serves.
pub fn run(options: &ServerOptions) -> Result<()> {
    let ServerOptions { listen } = options;
    let listener = TcpListener::bind(listen).with_context(|| format!("listening on {listen}"))?;
    println!("server: on {}; Ctrl-C ends it", listener.local_addr()?);
    serve(&listener);
    Ok(())
}

/// Serves one client after the other: two at a time would measure each other.
pub fn serve(listener: &TcpListener) {
    for stream in listener.incoming() {
        let served = stream.context("accepting a client").and_then(|stream| {
            let client = stream.peer_addr()?;
            println!("server: {client} measures");
            attend(stream).with_context(|| format!("serving {client}"))
        });
        match served {
            Ok(()) => println!("server: it has finished"),
            Err(error) => println!("server: {error:#}"),
        }
    }
}

fn attend(stream: TcpStream) -> Result<()> {
    let mut control = Control::new(stream)?;
    while let Some(request) = control.hear()? {
        let answer = match request {
            Request::Hello { version: VERSION } => Ok(Answer::Welcome),
            Request::Hello { version } => bail!("it speaks version {version}, this is {VERSION}"),
            Request::Tcp { streams } => take_streams(&control, streams),
            Request::Udp { stream } => count_datagrams(&mut control, stream),
            Request::Stop => bail!("it stops what it has not begun"),
        };
        control.say(&answer.unwrap_or_else(|error| Answer::Sorry { reason: format!("{error:#}") }))?;
    }
    Ok(())
}

fn take_streams(control: &Control, streams: u32) -> Result<Answer> {
    ensure!((1..=MOST_STREAMS).contains(&streams), "{streams} streams are not from 1 to {MOST_STREAMS}");
    let listener = TcpListener::bind(beside(control)?).context("listening for streams")?;
    control.say(&Answer::Port { port: listener.local_addr()?.port() })?;
    let busy = busy_seconds()?;
    let mut start = None;
    let bytes = std::thread::scope(|scope| {
        let mut readers = Vec::new();
        for _ in 0..streams {
            let stream = accept(&listener)?;
            start.get_or_insert_with(Instant::now);
            readers.push(scope.spawn(move || drain(stream)));
        }
        readers.into_iter().map(|reader| reader.join().expect("drain does not panic")).sum::<Result<u64>>()
    })?;
    let seconds = start.map_or(0.0, |start| start.elapsed().as_secs_f64());
    Ok(Answer::Streams { bytes, seconds, busy_seconds: busy_seconds()? - busy })
}

/// The next connection, or an error when none comes: the client may have met an obstacle.
fn accept(listener: &TcpListener) -> Result<TcpStream> {
    listener.set_nonblocking(true)?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                return Ok(stream);
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                ensure!(Instant::now() < deadline, "a stream did not come in {PATIENCE:?}");
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(error) => return Err(error).context("accepting a stream"),
        }
    }
}

fn drain(mut stream: TcpStream) -> Result<u64> {
    let mut buffer = vec![0; 1 << 18];
    let mut bytes = 0;
    loop {
        match stream.read(&mut buffer).context("reading a stream")? {
            0 => return Ok(bytes),
            count => bytes += count as u64,
        }
    }
}

fn count_datagrams(control: &mut Control, stream: u32) -> Result<Answer> {
    let socket = UdpSocket::bind(beside(control)?).context("binding a UDP socket")?;
    control.say(&Answer::Port { port: socket.local_addr()?.port() })?;
    let busy = busy_seconds()?;
    let ended = AtomicBool::new(false);
    let (received, overtaken) = std::thread::scope(|scope| {
        let counting = scope.spawn(|| udp::receive(&socket, stream, &ended));
        let stop = control.hear::<Request>();
        ended.store(true, Ordering::Release);
        let counted = counting.join().expect("receive does not panic");
        ensure!(stop?.is_some_and(|request| request == Request::Stop), "it went away meanwhile");
        counted
    })?;
    Ok(Answer::Datagrams { received, overtaken, busy_seconds: busy_seconds()? - busy })
}

/// Any port of the address that the client has reached.
fn beside(control: &Control) -> Result<SocketAddr> {
    let mut address = control.stream().local_addr()?;
    address.set_port(0);
    Ok(address)
}
