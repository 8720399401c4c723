//! One thread with one runtime that accepts connections until it is dropped; the caller handles them.

use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::thread::JoinHandle;

use tokio::net::TcpStream;
use tokio::sync::oneshot;

/// A listener on a free loopback port. Dropping it closes the port and every connection.
#[derive(Debug)]
pub(crate) struct TcpServer {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl TcpServer {
    /// Calls `serve` for each connection, all on one thread named `name`.
    pub(crate) fn start<F, S>(name: &str, serve: F) -> Self
    where
        F: Fn(TcpStream) -> S + Send + 'static,
        S: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        Self::on(listener, name, serve)
    }

    /// The same on a given listener.
    pub(crate) fn on<F, S>(listener: TcpListener, name: &str, serve: F) -> Self
    where
        F: Fn(TcpStream) -> S + Send + 'static,
        S: Future<Output = ()> + Send + 'static,
    {
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || run(listener, stopped, serve))
            .expect("a thread");
        Self {
            address,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    pub(crate) const fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for TcpServer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was printed already; a second one here would hide the test's own.
            let _ = thread.join();
        }
    }
}

fn run<F, S>(listener: TcpListener, mut stopped: oneshot::Receiver<()>, serve: F)
where
    F: Fn(TcpStream) -> S,
    S: Future<Output = ()> + Send + 'static,
{
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        loop {
            tokio::select! {
                _ = &mut stopped => return,
                accepted = listener.accept() => {
                    if let Ok((stream, _)) = accepted {
                        // Without it a fault could take effect before the bytes that precede it.
                        let _ = stream.set_nodelay(true);
                        tokio::spawn(serve(stream));
                    }
                }
            }
        }
    });
    runtime.shutdown_background();
}
