package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

const (
	many    = 20_000
	slow    = 300
	pace    = 10 * time.Millisecond
	service = "kumiko.test.Streams"
)

type message = wrapperspb.BytesValue

// Written by hand, so that no generator is needed: its messages are wrappers that protobuf ships.
var description = grpc.ServiceDesc{
	ServiceName: service,
	HandlerType: (*interface{})(nil),
	Streams: []grpc.StreamDesc{
		{StreamName: "Many", Handler: sendMany, ServerStreams: true},
		{StreamName: "Slow", Handler: sendSlowly, ServerStreams: true},
		{StreamName: "Echo", Handler: echo, ServerStreams: true, ClientStreams: true},
		{StreamName: "Fail", Handler: fail, ServerStreams: true},
	},
}

func sendMany(_ interface{}, stream grpc.ServerStream) error {
	for number := 0; number < many; number++ {
		if err := stream.SendMsg(&message{Value: fill(1024, number)}); err != nil {
			return err
		}
	}
	return nil
}

func sendSlowly(_ interface{}, stream grpc.ServerStream) error {
	for number := 0; number < slow; number++ {
		if err := stream.SendMsg(&message{Value: fill(10, number)}); err != nil {
			return err
		}
		time.Sleep(pace)
	}
	return nil
}

func echo(_ interface{}, stream grpc.ServerStream) error {
	for {
		got := new(message)
		err := stream.RecvMsg(got)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := stream.SendMsg(got); err != nil {
			return err
		}
	}
}

func fail(_ interface{}, stream grpc.ServerStream) error {
	for number := 0; number < 10; number++ {
		if err := stream.SendMsg(&message{Value: fill(10, number)}); err != nil {
			return err
		}
	}
	return status.Error(codes.DataLoss, "as agreed")
}

func grpcServer(args []string) error {
	listener, err := net.Listen("tcp", args[0])
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	server.RegisterService(&description, nil)
	return server.Serve(listener)
}

func grpcClient(args []string) error {
	conn, err := grpc.NewClient("passthrough:///"+args[0], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	// All on one connection at once, as gRPC does it.
	said := make([]chan string, 0, 4)
	for _, talk := range []func(*grpc.ClientConn) string{
		func(conn *grpc.ClientConn) string { return receive(conn, "Many", 1024) },
		func(conn *grpc.ClientConn) string { return receive(conn, "Slow", 10) },
		func(conn *grpc.ClientConn) string { return receive(conn, "Fail", 10) },
		exchange,
		cancelled,
	} {
		talk, out := talk, make(chan string, 1)
		go func() { out <- talk(conn) }()
		said = append(said, out)
	}
	for _, out := range said {
		fmt.Println(<-out)
	}
	return nil
}

func open(ctx context.Context, conn *grpc.ClientConn, name string) (grpc.ClientStream, error) {
	return conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/"+service+"/"+name)
}

func receive(conn *grpc.ClientConn, name string, length int) string {
	ctx, cancel := context.WithTimeout(context.Background(), patient)
	defer cancel()
	stream, err := open(ctx, conn, name)
	if err == nil {
		err = stream.CloseSend()
	}
	number := 0
	for ; err == nil; number++ {
		got := new(message)
		err = stream.RecvMsg(got)
		if err == nil && !bytes.Equal(got.Value, fill(length, number)) {
			return fmt.Sprintf("%s: message %d is wrong", name, number)
		}
	}
	return fmt.Sprintf("%s: %d messages, then %v", name, number-1, err)
}

func exchange(conn *grpc.ClientConn) string {
	ctx, cancel := context.WithTimeout(context.Background(), patient)
	defer cancel()
	stream, err := open(ctx, conn, "Echo")
	if err != nil {
		return fmt.Sprintf("Echo: %v", err)
	}
	go func() {
		for number := 0; number < many/4; number++ {
			if stream.SendMsg(&message{Value: fill(number%3000, number)}) != nil {
				return
			}
		}
		_ = stream.CloseSend()
	}()
	for number := 0; ; number++ {
		got := new(message)
		if err := stream.RecvMsg(got); err != nil {
			return fmt.Sprintf("Echo: %d messages, then %v", number, err)
		}
		if !bytes.Equal(got.Value, fill(number%3000, number)) {
			return fmt.Sprintf("Echo: message %d is wrong", number)
		}
	}
}

// A client that has enough in the middle of a stream.
func cancelled(conn *grpc.ClientConn) string {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	stream, err := open(ctx, conn, "Many")
	if err == nil {
		err = stream.CloseSend()
	}
	for number := 0; err == nil && number < 100; number++ {
		err = stream.RecvMsg(new(message))
	}
	if err != nil {
		return fmt.Sprintf("cancelled: %v", err)
	}
	cancel()
	for err == nil {
		err = stream.RecvMsg(new(message))
	}
	return fmt.Sprintf("cancelled: %v", status.Code(err))
}
