package main

import (
	"errors"
	"io"
	"net"
)

// proxy LISTEN TARGET: each direction is one io.Copy, which is splice(2) between two TCP connections, and an end of
// stream is passed on as a half-close.
func proxy(args []string) error {
	if len(args) != 2 {
		return errors.New("proxy LISTEN TARGET")
	}
	listener, err := net.Listen("tcp", args[0])
	if err != nil {
		return err
	}
	for {
		client, err := listener.Accept()
		if err != nil {
			return err
		}
		go serve(client.(*net.TCPConn), args[1])
	}
}

func serve(client *net.TCPConn, target string) {
	defer client.Close()
	conn, err := net.Dial("tcp", target)
	if err != nil {
		_ = client.SetLinger(0)
		return
	}
	server := conn.(*net.TCPConn)
	defer server.Close()
	done := make(chan error, 2)
	pass := func(to, from *net.TCPConn) {
		_, err := io.Copy(to, from)
		if err == nil {
			err = to.CloseWrite()
		}
		done <- err
	}
	go pass(server, client)
	go pass(client, server)
	for range [2]int{} {
		if err := <-done; err != nil {
			// What was cut on one side is cut on the other.
			_ = client.SetLinger(0)
			_ = server.SetLinger(0)
			return
		}
	}
}
