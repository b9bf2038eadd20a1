package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/gorilla/websocket"
)

const (
	bursts  = 2000
	patient = 60 * time.Second
)

// websocketServer ADDRESS: echoes at /, sends a burst and cuts the connection without a word at /cut.
func websocketServer(args []string) error {
	upgrader := websocket.Upgrader{}
	handle := func(path string, talk func(*websocket.Conn)) {
		http.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			conn, err := upgrader.Upgrade(w, r, nil)
			if err != nil {
				return
			}
			defer conn.Close()
			talk(conn)
		})
	}
	handle("/", func(conn *websocket.Conn) {
		for {
			kind, message, err := conn.ReadMessage()
			if err != nil || conn.WriteMessage(kind, message) != nil {
				return
			}
		}
	})
	handle("/cut", func(conn *websocket.Conn) {
		for number := 0; number < bursts; number++ {
			if conn.WriteMessage(websocket.BinaryMessage, fill(100, number)) != nil {
				return
			}
		}
	})
	return http.ListenAndServe(args[0], nil)
}

func websocketClient(args []string) error {
	conn, err := dial(args[0], "/")
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := echoes(conn); err != nil {
		return err
	}
	if err := burst(conn); err != nil {
		return err
	}
	if err := pingAndClose(conn); err != nil {
		return err
	}
	return cut(args[0])
}

func dial(address, path string) (*websocket.Conn, error) {
	conn, answer, err := websocket.DefaultDialer.Dial("ws://"+address+path, nil)
	if err != nil {
		return nil, err
	}
	fmt.Printf("%s: %s\n", path, answer.Status)
	return conn, conn.SetReadDeadline(time.Now().Add(patient))
}

// One message after another, of every length that has its own form of header.
func echoes(conn *websocket.Conn) error {
	for _, length := range []int{0, 1, 125, 126, 65535, 65536, 1 << 20, 8 << 20} {
		sent := fill(length, length)
		if err := conn.WriteMessage(websocket.BinaryMessage, sent); err != nil {
			return err
		}
		_, got, err := conn.ReadMessage()
		if err != nil {
			return err
		}
		fmt.Printf("echo of %d: %v\n", length, bytes.Equal(sent, got))
	}
	return nil
}

// Many at once, while their echoes come back.
func burst(conn *websocket.Conn) error {
	failed := make(chan error, 1)
	go func() {
		for number := 0; number < bursts; number++ {
			if err := conn.WriteMessage(websocket.BinaryMessage, fill(number, number)); err != nil {
				failed <- err
				return
			}
		}
		failed <- nil
	}()
	for number := 0; number < bursts; number++ {
		_, got, err := conn.ReadMessage()
		if err != nil {
			return err
		}
		if !bytes.Equal(got, fill(number, number)) {
			return fmt.Errorf("message %d came back otherwise", number)
		}
	}
	fmt.Printf("burst of %d: in order\n", bursts)
	return <-failed
}

func pingAndClose(conn *websocket.Conn) error {
	ponged := ""
	conn.SetPongHandler(func(data string) error {
		ponged = data
		return nil
	})
	deadline := time.Now().Add(patient)
	if err := conn.WriteControl(websocket.PingMessage, []byte("ping"), deadline); err != nil {
		return err
	}
	farewell := websocket.FormatCloseMessage(4000, "enough")
	if err := conn.WriteControl(websocket.CloseMessage, farewell, deadline); err != nil {
		return err
	}
	_, _, err := conn.ReadMessage()
	fmt.Printf("pong %q, then %v\n", ponged, err)
	// The server closes next: a clean end.
	_, err = conn.NetConn().Read(make([]byte, 1))
	fmt.Printf("the connection's end: %v\n", kind(err))
	return nil
}

func cut(address string) error {
	conn, err := dial(address, "/cut")
	if err != nil {
		return err
	}
	defer conn.Close()
	for number := 0; ; number++ {
		_, got, err := conn.ReadMessage()
		if err != nil {
			fmt.Printf("cut after %d: %v\n", number, err)
			return nil
		}
		if !bytes.Equal(got, fill(100, number)) {
			return fmt.Errorf("message %d is wrong", number)
		}
	}
}

// An error without the addresses and ports in it.
func kind(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err
	}
	return err
}
