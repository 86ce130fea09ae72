//! A browser's half of HTTP, by hand: what is sent is exactly what the test says.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::TcpStream,
    time::Duration,
};

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The head as it came, status line included.
    pub head: String,
    /// The body.
    pub body: String,
}

/// A page that a controller has printed.
#[derive(Debug, Clone)]
pub struct Page {
    /// Where it listens.
    pub port: u16,
    /// Who may ask.
    pub token: String,
}

impl Page {
    /// The page whose address is in what `ipctl` has printed.
    pub fn printed(stdout: &str) -> Option<Page> {
        let line = stdout
            .lines()
            .find_map(|line| line.strip_prefix("http://127.0.0.1:"))?;
        let (port, token) = line.split_once("/?token=")?;
        Some(Page {
            port: port.parse().ok()?,
            token: token.to_owned(),
        })
    }

    /// A connection.
    ///
    /// # Errors
    /// When nobody listens.
    pub fn connect(&self) -> io::Result<TcpStream> {
        let stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        Ok(stream)
    }

    /// Sends a request as it is and reads the whole answer.
    ///
    /// # Errors
    /// When there is none.
    pub fn send(&self, request: &str) -> io::Result<Answer> {
        let mut stream = self.connect()?;
        stream.write_all(request.as_bytes())?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let text = String::from_utf8_lossy(&answer).into_owned();
        let (head, body) = text
            .split_once("\r\n\r\n")
            .ok_or_else(|| io::Error::other(format!("no HTTP: {text:?}")))?;
        let status = head
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok())
            .ok_or_else(|| io::Error::other(format!("no status: {head:?}")))?;
        Ok(Answer {
            status,
            head: head.to_owned(),
            body: body.to_owned(),
        })
    }

    /// `GET path` with these lines of the head besides `Host`.
    ///
    /// # Panics
    /// When there is no answer.
    #[track_caller]
    pub fn get(&self, path: &str, lines: &[&str]) -> Answer {
        let mut request = format!("GET {path} HTTP/1.1\r\nConnection: close\r\n");
        if !lines.iter().any(|line| line.starts_with("Host:")) {
            request += &format!("Host: 127.0.0.1:{}\r\n", self.port);
        }
        for line in lines {
            request += line;
            request += "\r\n";
        }
        self.send(&(request + "\r\n"))
            .unwrap_or_else(|error| panic!("GET {path}: {error}"))
    }

    /// `GET path` as its owner.
    #[track_caller]
    pub fn own(&self, path: &str) -> Answer {
        self.get(path, &[&format!("Authorization: Bearer {}", self.token)])
    }

    /// `POST path` with a JSON body, as its owner.
    ///
    /// # Panics
    /// When there is no answer.
    #[track_caller]
    pub fn post(&self, path: &str, body: &str) -> Answer {
        let (port, token) = (self.port, &self.token);
        self.send(&format!(
            "POST {path} HTTP/1.1\r\nHost: localhost:{port}\r\nOrigin: http://localhost:{port}\r\nConnection: close\r\n\
             Authorization: Bearer {token}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ))
        .unwrap_or_else(|error| panic!("POST {path}: {error}"))
    }

    /// The stream of events: names and data, for as long as the iterator is asked.
    ///
    /// # Panics
    /// When it cannot be opened.
    #[track_caller]
    pub fn events(&self) -> impl Iterator<Item = (String, serde_json::Value)> + use<> {
        let mut stream = self.connect().expect("the page listens");
        let request = format!(
            "GET /events?token={} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
            self.token
        );
        stream.write_all(request.as_bytes()).expect("it reads");
        let mut name = String::new();
        BufReader::new(stream)
            .lines()
            .map_while(Result::ok)
            .filter_map(move |line| {
                if let Some(event) = line.strip_prefix("event: ") {
                    name = event.to_owned();
                }
                let data = line.strip_prefix("data: ")?;
                Some((name.clone(), serde_json::from_str(data).ok()?))
            })
    }
}
