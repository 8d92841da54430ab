// The agent as one would first write it in Go: a common WebSocket package, a goroutine for each command, a ticker.
//
//	agent URL NODE CLI SECONDS
package main

import (
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/gorilla/websocket"
)

type message struct {
	Type    string         `json:"type"`
	Payload map[string]any `json:"payload"`
}

type agent struct {
	cli      string
	mutex    sync.Mutex
	peer     *websocket.Conn
	replicas map[string]string
}

func (a *agent) say(kind string, payload map[string]any) {
	a.mutex.Lock()
	defer a.mutex.Unlock()
	if a.peer != nil {
		_ = a.peer.WriteJSON(message{kind, payload})
	}
}

func (a *agent) set(id, status string) {
	a.mutex.Lock()
	defer a.mutex.Unlock()
	if status == "" {
		delete(a.replicas, id)
	} else {
		a.replicas[id] = status
	}
}

func (a *agent) heartbeat() {
	a.mutex.Lock()
	containers := []map[string]string{}
	for id, status := range a.replicas {
		containers = append(containers, map[string]string{"replica_id": id, "status": status})
	}
	a.mutex.Unlock()
	a.say("heartbeat", map[string]any{"status": map[string]any{"containers": containers}})
}

func (a *agent) deploy(payload map[string]any) {
	id, _ := payload["replica_id"].(string)
	image, _ := payload["image"].(string)
	out, err := exec.Command(a.cli, "run", "-d", "--name", "bench-"+id, "--label", "bench.replica="+id, image).Output()
	if err != nil {
		a.set(id, "failed")
		a.say("deploy_result", map[string]any{"replica_id": id, "status": "failed", "error": err.Error()})
		return
	}
	a.set(id, "running")
	container := strings.TrimSpace(string(out))
	a.say("deploy_result", map[string]any{"replica_id": id, "status": "running", "container_id": container})
}

// It kills, and believes what the CLI says.
func (a *agent) stop(payload map[string]any) {
	id, _ := payload["replica_id"].(string)
	status := "stopped"
	if err := exec.Command(a.cli, "rm", "-f", "bench-"+id).Run(); err != nil {
		status = "failed"
	}
	a.set(id, "")
	a.say("stop_result", map[string]any{"replica_id": id, "status": status})
}

func (a *agent) adopt() {
	out, _ := exec.Command(a.cli, "ps", "-a", "--format", "{{.Names}}").Output()
	for _, line := range strings.Split(strings.TrimSpace(string(out)), "\n") {
		if fields := strings.Split(line, "\t"); len(fields) > 1 {
			a.replicas[fields[1]] = "running"
		}
	}
}

func (a *agent) serve(url, node string) {
	peer, _, err := websocket.DefaultDialer.Dial(url, http.Header{"X-Node-Id": {node}})
	if err != nil {
		return
	}
	a.mutex.Lock()
	a.peer = peer
	a.mutex.Unlock()
	host, _ := os.Hostname()
	a.say("system_info", map[string]any{"hostname": host, "cpuCores": runtime.NumCPU()})
	a.heartbeat()
	for {
		_, data, err := peer.ReadMessage()
		if err != nil {
			break
		}
		var command message
		if json.Unmarshal(data, &command) != nil {
			continue
		}
		switch command.Type {
		case "deploy":
			go a.deploy(command.Payload)
		case "stop":
			go a.stop(command.Payload)
		}
	}
	a.mutex.Lock()
	a.peer = nil
	a.mutex.Unlock()
	peer.Close()
}

func main() {
	seconds, err := strconv.Atoi(os.Args[4])
	if err != nil {
		os.Exit(2)
	}
	a := &agent{cli: os.Args[3], replicas: map[string]string{}}
	a.adopt()
	go func() {
		for range time.Tick(time.Duration(seconds) * time.Second) {
			a.heartbeat()
		}
	}()
	for {
		a.serve(os.Args[1], os.Args[2])
		time.Sleep(time.Second)
	}
}
