#!/usr/bin/env bash
# Set up a machine from the bundle that this file lies in. Needs root and no network beyond the other machines.
#
#   install.sh [--key FILE.pub] etcd --member NAME --members NAME=ADDRESS[,NAME=ADDRESS...]
#   install.sh [--key FILE.pub] etcd --from moorage-etcd-NAME.tar        a further member, with what the first one made
#   install.sh [--key FILE.pub] hub --name NAME --address ADDRESS        beside an etcd member
#   install.sh [--key FILE.pub] node --name NAME --address ADDRESS --hub HOST:7401 --token-file FILE [--zone ZONE]
#   install.sh [--key FILE.pub] packages [PACKAGE...]                    packages alone; without any: all that are Moorage's
#
# With --key it checks first that the bundle is what the key's owner has signed; without, only that it is whole.
# Each may be run again: what is there already is kept.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")"); etc=/etc/moorage/etcd; kept=/var/cache/moorage-bundle
export LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive
umask 022

say() { echo "install: $*" >&2; }
die() { echo "install: $*" >&2; exit 1; }
usage() { sed -n '2,12s/^# \{0,1\}//p' "$0" >&2; exit 2; }
within() { local _ seconds=$1; shift; for _ in $(seq "$seconds"); do "$@" && return 0; sleep 1; done; return 1; }
is_name() { [[ $1 =~ ^[a-z][a-z0-9-]{0,40}$ ]]; }
is_address() { [[ $1 =~ ^[0-9]{1,3}(\.[0-9]{1,3}){3}$ ]]; }

check_bundle() {
    cd "$here"
    [ -f SHA256SUMS ] && [ -f manifest.json ] || die "$here is no bundle that was unpacked: tar -xf BUNDLE first"
    if [ -n "$key" ]; then
        command -v openssl >/dev/null || die "openssl is missing, so the signature cannot be checked: see 'Without openssl' in installing.md"
        openssl pkeyutl -verify -pubin -inkey "$key" -rawin -in SHA256SUMS -sigfile SHA256SUMS.sig >/dev/null 2>&1 \
            || die "this bundle is not signed by the key in $key: do not use it"
    else
        say "no --key: whether the bundle comes from whom you think is not checked"
    fi
    sha256sum --quiet --strict -c SHA256SUMS || die "the bundle is not whole: unpack or copy it again"
    grep -q "\"release\": \"$(. /etc/os-release && echo "$VERSION_CODENAME")\"" manifest.json \
        || die "this bundle is for $(sed -n 's/.*"release": "\(.*\)".*/\1/p' manifest.json), not for this machine's release"
}

# apt takes packages from the bundle alone, whatever sources the machine has otherwise. They are kept where _apt may read.
install_packages() {
    if [ "$here" != $kept ] && ! cmp -s "$here/SHA256SUMS" $kept/SHA256SUMS; then
        rm -rf $kept; mkdir -p $kept; cp -r "$here/." $kept/
    fi
    local list; list=$(mktemp); echo "deb [trusted=yes] file:$kept ./" >"$list"; chmod 644 "$list"
    local from=(-q -o "Dir::Etc::sourcelist=$list" -o Dir::Etc::sourceparts=- -o APT::Get::List-Cleanup=0)
    # Nothing starts before it is configured, and the distribution's engine makes no cluster of its own.
    local policy=/usr/sbin/policy-rc.d own=no
    [ -e $policy ] || { own=yes; trap "rm -f $policy" EXIT; printf '#!/bin/sh\nexit 101\n' >$policy; chmod 755 $policy; }
    [ -e /etc/postgresql-common/createcluster.conf ] || { mkdir -p /etc/postgresql-common; echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.conf; }
    local result=0
    apt-get "${from[@]}" update >/dev/null && apt-get "${from[@]}" install -y --no-install-recommends \
        -o Dpkg::Options::=--force-confold "$@" >/var/log/moorage-install.log 2>&1 || result=$?
    [ $own = no ] || rm -f $policy
    rm -f "$list"
    [ $result = 0 ] || { tail -n 20 /var/log/moorage-install.log >&2; die "packages could not be installed, see /var/log/moorage-install.log"; }
}

# --- etcd ---------------------------------------------------------------------------------------------------------

signed() { # signed NAME SUBJECT ALTERNATIVES: a key and a certificate by our etcd CA
    openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout "$1.key" -subj "/CN=$2" -out "$1.csr" 2>/dev/null
    openssl x509 -req -in "$1.csr" -CA ca.crt -CAkey ca.key -CAcreateserial -days 3650 -out "$1.crt" \
        -extfile <(printf 'subjectAltName=%s\nextendedKeyUsage=serverAuth,clientAuth\n' "$3") 2>/dev/null
    rm "$1.csr"
}

# Certificates of all members, of the hubs and of root, made where the first member is. One tar for each other member.
make_certificates() {
    local pair; rm -rf $etc.new; mkdir -p -m 700 $etc.new; cd $etc.new
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout ca.key -subj "/CN=moorage etcd" -days 3650 -out ca.crt 2>/dev/null
    signed hub moorage-hub DNS:moorage-hub
    signed root root DNS:root
    for pair in ${members//,/ }; do signed "member-${pair%%=*}" "${pair%%=*}" "IP:${pair#*=},IP:127.0.0.1,DNS:localhost"; done
    for pair in ${members//,/ }; do
        [ "${pair%%=*}" != "$member" ] || continue
        echo "member=${pair%%=*} members=$members" >this
        (umask 077; tar -cf "/root/moorage-etcd-${pair%%=*}.tar" this ca.crt hub.crt hub.key root.crt root.key "member-${pair%%=*}.crt" "member-${pair%%=*}.key")
        say "carry /root/moorage-etcd-${pair%%=*}.tar to that machine, then: install.sh etcd --from moorage-etcd-${pair%%=*}.tar"
    done
    rm -f this; cd /; rm -rf $etc; mv $etc.new $etc
}

settings_of_etcd() { # $1 = its address
    local pair cluster=""
    for pair in ${members//,/ }; do cluster+="${cluster:+,}${pair%%=*}=https://${pair#*=}:2380"; done
    cat <<SETTINGS
# Made by Moorage's install.sh.
ETCD_NAME=$member
ETCD_DATA_DIR=/var/lib/etcd/moorage
ETCD_LISTEN_PEER_URLS=https://$1:2380
ETCD_LISTEN_CLIENT_URLS=https://$1:2379,https://127.0.0.1:2379
ETCD_INITIAL_ADVERTISE_PEER_URLS=https://$1:2380
ETCD_ADVERTISE_CLIENT_URLS=https://$1:2379
ETCD_INITIAL_CLUSTER=$cluster
ETCD_INITIAL_CLUSTER_TOKEN=moorage
ETCD_INITIAL_CLUSTER_STATE=new
ETCD_CERT_FILE=$etc/member-$member.crt
ETCD_KEY_FILE=$etc/member-$member.key
ETCD_TRUSTED_CA_FILE=$etc/ca.crt
ETCD_CLIENT_CERT_AUTH=true
ETCD_PEER_CERT_FILE=$etc/member-$member.crt
ETCD_PEER_KEY_FILE=$etc/member-$member.key
ETCD_PEER_TRUSTED_CA_FILE=$etc/ca.crt
ETCD_PEER_CLIENT_CERT_AUTH=true
ETCD_QUOTA_BACKEND_BYTES=2147483648
ETCD_AUTO_COMPACTION_MODE=periodic
ETCD_AUTO_COMPACTION_RETENTION=1h
SETTINGS
}

set_up_etcd() {
    local from="" member="" members=""
    while [ $# -gt 0 ]; do case $1 in
        --from) from=$(readlink -f "${2:?}"); shift 2;;
        --member) member=${2:?}; shift 2;;
        --members) members=${2:?}; shift 2;;
        *) usage;;
    esac; done
    check_bundle
    if [ -n "$from" ]; then
        [ -r "$from" ] || die "$from is not there"
        local told; told=$(tar -xOf "$from" this) || die "$from is not what install.sh etcd has made"
        member=$(sed -n 's/^member=\([^ ]*\) .*/\1/p' <<<"$told"); members=$(sed -n 's/.* members=//p' <<<"$told")
    fi
    local pair address=""
    [ -n "$member" ] && [ -n "$members" ] || usage
    for pair in ${members//,/ }; do
        is_name "${pair%%=*}" && is_address "${pair#*=}" || die "--members: $pair is not NAME=ADDRESS"
        [ "${pair%%=*}" != "$member" ] || address=${pair#*=}
    done
    [ -n "$address" ] || die "--members does not name $member"
    [ ! -e /var/lib/etcd/moorage ] || { say "etcd is set up already: /var/lib/etcd/moorage"; return; }
    install_packages etcd-server etcd-client openssl
    mkdir -p /etc/moorage
    if [ -n "$from" ]; then
        rm -rf $etc; mkdir -p -m 700 $etc; tar -C $etc --no-same-owner -xf "$from"; rm -f $etc/this
    else
        make_certificates
    fi
    chown etcd: $etc $etc/member-*; chmod 711 $etc; chmod 644 $etc/*.crt; chmod 600 $etc/*.key
    settings_of_etcd "$address" >/etc/default/etcd
    systemctl enable -q etcd
    systemctl restart --no-block etcd
    # Its start lasts until most members are there.
    if [ "$members" = "${members%%,*}" ]; then
        within 60 healthy || die "etcd does not answer: journalctl -u etcd"
        say "etcd answers at $address:2379, with TLS, for clients with a certificate"
    else
        say "etcd starts at $address:2379; it answers when most of its members run"
    fi
}

etcdctl_as_root() { ETCDCTL_API=3 etcdctl --endpoints=https://127.0.0.1:2379 --cacert $etc/ca.crt --cert $etc/root.crt --key $etc/root.key "$@"; }
healthy() { etcdctl_as_root endpoint health >/dev/null 2>&1; }

# Hubs may touch what is Moorage's, root everything, others nothing. Who one is says the certificate.
demand_authentication() {
    within 120 healthy || die "etcd does not answer at 127.0.0.1:2379: are most of its members set up? journalctl -u etcd"
    etcdctl_as_root user list 2>/dev/null | grep -qx moorage-hub || {
        etcdctl_as_root role add moorage
        etcdctl_as_root role grant-permission moorage readwrite --prefix /moorage
        etcdctl_as_root user add --no-password moorage-hub
        etcdctl_as_root user grant-role moorage-hub moorage
    } >/dev/null
    etcdctl_as_root user list | grep -qx root || { etcdctl_as_root user add --no-password root; etcdctl_as_root user grant-role root root; } >/dev/null
    etcdctl_as_root auth enable >/dev/null
}

# --- hub ----------------------------------------------------------------------------------------------------------

set_up_hub() {
    local name="" address=""
    while [ $# -gt 0 ]; do case $1 in
        --name) name=${2:?}; shift 2;;
        --address) address=${2:?}; shift 2;;
        *) usage;;
    esac; done
    is_name "$name" || die "--name: '$name' is no name (a-z, 0-9, -)"
    is_address "$address" || die "--address: '$address' is no IPv4 address"
    [ -e $etc/hub.key ] || die "there is no etcd member on this machine: install.sh etcd first"
    check_bundle
    demand_authentication
    install_packages moorage-hub moorage-cli
    local endpoints; endpoints=$(sed -n 's/^ETCD_INITIAL_CLUSTER=//p' /etc/default/etcd | tr ',' '\n' | sed 's|.*https://||; s|:2380|:2379|' | paste -sd, | sed 's/,/, /g')
    for file in ca.crt hub.crt hub.key; do install -o root -g moorage-hub -m 640 $etc/$file /etc/moorage/etcd-$file; done
    if ! grep -q '^etcd_tls:' /etc/moorage/hub.yaml; then
        cat >/etc/moorage/hub.yaml <<SETTINGS
# Made by Moorage's install.sh; what else can be said here: man moorage-hub, /usr/share/doc/moorage-hub.
name: $name
etcd_endpoints: [$endpoints]
etcd_tls:
  ca: /etc/moorage/etcd-ca.crt
  cert: /etc/moorage/etcd-hub.crt
  key: /etc/moorage/etcd-hub.key
listen_agents: $address:7400
listen_operators: $address:7401
data_dir: /var/lib/moorage-hub
SETTINGS
    fi
    systemctl enable -q moorage-hub
    systemctl restart moorage-hub || die "the hub does not start: journalctl -u moorage-hub"
    local state=/var/lib/moorage-hub
    [ ! -s $state/admin.token ] || moorctl --hub "$address:7401" --token-file $state/admin.token --ca-file $state/ca.crt context set "$name" >/dev/null
    cat <<NEXT
The hub answers at $address:7401; moorctl on this machine knows it.
KEEP A COPY of $state/seal.key in a safe place: without it no hub can read the secrets in etcd.

For each node, here:    moorctl node token NODE > token
there, with the bundle: ./install.sh node --name NODE --address ADDRESS --hub $address:7401 --token-file token
NEXT
}

# --- node ---------------------------------------------------------------------------------------------------------

set_up_node() {
    local name="" address="" hub="" token="" zone=""
    while [ $# -gt 0 ]; do case $1 in
        --name) name=${2:?}; shift 2;;
        --address) address=${2:?}; shift 2;;
        --hub) hub=${2:?}; shift 2;;
        --token-file) token=$(readlink -f "${2:?}"); shift 2;;
        --zone) zone=${2:?}; shift 2;;
        *) usage;;
    esac; done
    is_name "$name" || die "--name: '$name' is no name (a-z, 0-9, -)"
    is_address "$address" || die "--address: '$address' is no IPv4 address"
    [ -n "$hub" ] || die "--hub HOST:7401 is needed"
    [ -e /var/lib/moorage/identity/node.crt ] || [ -r "$token" ] || die "--token-file: a file with a token that 'moorctl node token $name' has made is needed"
    [ -z "$zone" ] || is_name "$zone" || die "--zone: '$zone' is no name"
    check_bundle
    install_packages moorage-agent postgresql-15
    local file=/etc/moorage/agent.yaml
    sed -i "s/^node: .*/node: $name/; s/^address: .*/address: $address/" $file
    [ -z "$zone" ] || sed -i "s/^\(# \)\{0,1\}zone: .*/zone: $zone/" $file
    [ -e /var/lib/moorage/identity/node.crt ] || moorage-agent enrol --hub "$hub" --token-file "$token" || die "enrolment failed; a token is good once, for one hour"
    systemctl enable -q moorage-agent
    systemctl restart moorage-agent || die "the agent does not start: journalctl -u moorage-agent"
    echo "The node $name runs. At the hub: moorctl node list"
}

[ "$(id -u)" = 0 ] || die "root is needed"
key=""
if [ "${1:-}" = --key ]; then key=$(readlink -f "${2:?}"); shift 2; [ -r "$key" ] || die "--key: no such file"; fi
case "${1:-}" in
etcd) shift; set_up_etcd "$@";;
hub) shift; set_up_hub "$@";;
node) shift; set_up_node "$@";;
packages) shift; [ $# -gt 0 ] || set -- moorage-hub moorage-agent moorage-cli; check_bundle; install_packages "$@";;
*) usage;;
esac
