# Sourced: `engine_start` leaves DOCKER_HOST at a working engine, starting one of its own if none answers; `engine_stop` ends it.
#
# An engine of our own has its socket, images and state in one folder, and makes no bridge and no firewall rules: nothing of
# another one is touched, nothing stays behind, and its containers reach no network.

engine_folder=
engine_start() {
  if docker info > /dev/null 2>&1; then
    echo "images: the Docker engine that is running is used"
    return
  fi
  if [ "$(id -u)" != 0 ]; then
    echo "images: no Docker engine answers, and only root can start one. Start it, or add yourself to the group docker." >&2
    return 1
  fi
  engine_folder=$1
  mkdir -p "$engine_folder"
  export DOCKER_HOST="unix://$engine_folder/docker.sock"
  dockerd --host "$DOCKER_HOST" --data-root "$engine_folder/data" --exec-root "$engine_folder/exec" \
    --pidfile "$engine_folder/pid" --bridge none --iptables=false --ip-masq=false > "$engine_folder/log" 2>&1 &
  for _ in $(seq 60); do
    docker info > /dev/null 2>&1 && return
    sleep 1
  done
  echo "images: the Docker engine did not start within a minute:" >&2
  tail -n 20 "$engine_folder/log" >&2
  return 1
}

engine_stop() {
  [ -n "$engine_folder" ] && [ -f "$engine_folder/pid" ] || return 0
  local pid
  pid=$(cat "$engine_folder/pid")
  kill "$pid" 2> /dev/null || true
  for _ in $(seq 30); do
    kill -0 "$pid" 2> /dev/null || break
    sleep 1
  done
  rm -rf "$engine_folder"
}
