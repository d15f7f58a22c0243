"""An HTTP/1.1 server for GET, HEAD and OPTIONS that knows nothing of funding rates."""
