"""The data plane's proxy: connections of clients, exchanges, the pool of connections to the API."""
