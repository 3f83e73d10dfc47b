// Command etcd is the stock etcd server: its own main package is not importable as a tool here.
package main

import (
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() { etcdmain.Main(os.Args) }
