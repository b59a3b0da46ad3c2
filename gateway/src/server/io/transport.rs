//! What carries a connection: TCP, TLS over TCP, or a Unix socket.

use std::{
    fs::File,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::server::TlsStream;

/// What carries a connection.
#[derive(Debug)]
pub(in crate::server) enum Transport {
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    Unix(UnixStream),
}

impl Transport {
    /// Bytes the kernel may take before a write shows whether the client reads.
    pub(in crate::server) fn send_buffer_bytes(&self) -> u64 {
        let size = match self {
            Self::Tcp(stream) => SockRef::from(stream).send_buffer_size(),
            Self::Tls(stream) => SockRef::from(stream.get_ref().0).send_buffer_size(),
            Self::Unix(stream) => SockRef::from(stream).send_buffer_size(),
        };
        size.unwrap_or_default() as u64
    }

    /// Answers 503 without waiting for anything, as far as the client's kernel takes it; the connection is closed by the drop.
    pub(in crate::server) fn refuse(&self) {
        const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
        let written = match self {
            Self::Tcp(stream) => stream.try_write(FULL),
            Self::Unix(stream) => stream.try_write(FULL),
            Self::Tls(_) => Ok(0),
        };
        if let Err(error) = written {
            tracing::debug!(%error, "a refused connection takes no answer");
        }
    }

    /// Whether the kernel can send files over it.
    pub(in crate::server) fn sends_files(&self) -> bool {
        matches!(self, Self::Tcp(_))
    }

    /// Sends up to `length` bytes of a file at `offset`, none of which the process reads. A file that ends before is an error.
    pub(in crate::server) fn poll_send_file(
        &self,
        context: &mut Context<'_>,
        file: &File,
        offset: u64,
        length: usize,
    ) -> Poll<io::Result<usize>> {
        let Self::Tcp(stream) = self else {
            return Poll::Ready(Err(io::ErrorKind::Unsupported.into()));
        };
        loop {
            ready!(stream.poll_write_ready(context))?;
            let send = || {
                let mut offset = offset;
                Ok(rustix::fs::sendfile(
                    stream,
                    file,
                    Some(&mut offset),
                    length,
                )?)
            };
            match stream.try_io(Interest::WRITABLE, send) {
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                    ) => {}
                Ok(0) if length > 0 => {
                    return Poll::Ready(Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "a blob's file is shorter than its size",
                    )));
                }
                sent => return Poll::Ready(sent),
            }
        }
    }

    fn write_side(&mut self) -> Pin<&mut (dyn AsyncWrite + Send + Unpin)> {
        match self {
            Self::Tcp(stream) => Pin::new(stream),
            Self::Tls(stream) => Pin::new(&mut **stream),
            Self::Unix(stream) => Pin::new(stream),
        }
    }
}

impl AsyncRead for Transport {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Tcp(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tls(stream) => Pin::new(&mut **stream).poll_read(context, buffer),
            Self::Unix(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.write_side().poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.write_side().poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.write_side().poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.write_side().poll_shutdown(context)
    }
}
