// Ordinary Go programs for the tests: WebSocket, gRPC, and a proxy that copies in the kernel where Go does so.
//
// Clients print what they saw, in words that do not depend on time: the test compares the text with and without the mesh.
package main

import (
	"fmt"
	"os"
)

var commands = map[string]func(args []string) error{
	"websocket-server": websocketServer,
	"websocket-client": websocketClient,
	"grpc-server":      grpcServer,
	"grpc-client":      grpcClient,
	"proxy":            proxy,
}

func main() {
	if len(os.Args) < 3 || commands[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "usage: kumiko-programs COMMAND ADDRESS [ADDRESS]")
		os.Exit(2)
	}
	if err := commands[os.Args[1]](os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// fill writes bytes that differ by position and by tag.
func fill(length, tag int) []byte {
	bytes := make([]byte, length)
	for at := range bytes {
		bytes[at] = byte(at*31 + at>>8 + tag)
	}
	return bytes
}
