# Drives the gem acme-client, as Debian has it.
require 'acme-client'
require 'json'

JOB = JSON.parse(ARGV[0])
IP = '127.0.0.1'.freeze
DONE = { version: Acme::Client::VERSION, files: {}, deeds: [] }

def keep(deed, pem)
  file = File.join(JOB['folder'], "#{deed.tr(' ', '-')}.pem")
  File.write(file, pem)
  DONE[:files][deed] = file
end

def present(authorization, kind)
  challenge = kind == 'dns-01' ? authorization.dns : authorization.http
  if kind == 'dns-01'
    record = "#{challenge.record_name}.#{authorization.identifier['value']}"
    File.write(File.join(JOB['records'], record), "#{challenge.record_content}\n", mode: 'a')
  else
    File.write(File.join(JOB['challenges'], challenge.token), challenge.file_content)
  end
  challenge.request_validation
  while challenge.status == 'pending' || challenge.status == 'processing'
    sleep 0.1
    challenge.reload
  end
  raise "#{challenge.status}: #{challenge.error}" unless challenge.status == 'valid'
end

def request(name)
  key = OpenSSL::PKey::EC.generate('prime256v1')
  return Acme::Client::CertificateRequest.new(private_key: key, names: [name]) unless name == IP

  # Its own requests are for DNS names alone, its orders are not.
  extension = OpenSSL::X509::ExtensionFactory.new.create_extension('subjectAltName', "IP:#{name}")
  OpenSSL::X509::Request.new.tap do |csr|
    csr.public_key = key
    csr.add_attribute(OpenSSL::X509::Attribute.new('extReq', OpenSSL::ASN1::Set([OpenSSL::ASN1::Sequence([extension])])))
    csr.sign(key, OpenSSL::Digest.new('SHA256'))
  end
end

def obtain(client, name, kind: 'http-01')
  order = client.new_order(identifiers: [{ type: name == IP ? 'ip' : 'dns', value: name }])
  order.authorizations.each { |each| present(each, kind) if each.status == 'pending' }
  order.reload
  order.finalize(csr: request(name))
  while order.status == 'processing'
    sleep 0.1
    order.reload
  end
  order.certificate
end

client = Acme::Client.new(
  private_key: OpenSSL::PKey::RSA.new(2048),
  directory: JOB['directory'],
  connection_options: { ssl: { ca_file: JOB['root'] } }
)
client.new_account(contact: 'mailto:hostmaster@example.test', terms_of_service_agreed: true)
keep('issue', obtain(client, JOB['host']))
client.account_key_change(new_private_key: OpenSSL::PKey::EC.generate('prime256v1'))
DONE[:deeds] << 'key roll'
renewed = obtain(client, JOB['host'])
keep('renew', renewed)
keep('wildcard', obtain(client, "*.w.#{JOB['host']}", kind: 'dns-01'))
keep('IP', obtain(client, IP))
client.revoke(certificate: renewed)
keep('revoke', renewed)
puts JSON.generate(DONE)
